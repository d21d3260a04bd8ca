"""torch's own transformer layers, computed by calling their parts, and its attention.

`nn.TransformerEncoderLayer` and `nn.TransformerEncoder` hand the weights of their parts to one
fused function where nothing is trained, past the quantizers of these parts. The classes here have
the same parts and arguments and always call the parts. Their causal hints are not passed on: a mask
is always given with such a hint, and says the same. At padded positions they give numbers, as torch
does in training, where the fused function may give zeros.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.errors import UnsupportedLayer

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def in_parts(model: nn.Module) -> nn.Module:
    """Gives torch's own transformer layers the classes of this file, in place."""
    for module in model.modules():
        if type(module) in _CLASSES:
            part: Any = module
            part.__class__ = _CLASSES[type(module)]
    return model


def check_solved_in_blocks(model: nn.Module) -> None:
    """Refuses torch's own transformer layers where blocks run as they are.

    Raises:
        UnsupportedLayer: there is one.
    """
    for name, module in model.named_modules():
        if isinstance(module, _LAYERS):
            raise UnsupportedLayer(
                f"layer '{name}' is torch's own {type(module).__name__}, which reads the weights "
                "of its parts without their quantizers; brevitas_axe.quantize takes it apart."
            )


def computes_alone(module: nn.Module) -> bool:
    """True for a class derived from a transformer layer, which may hand on its parts' weights."""
    known = (*_CLASSES, *_CLASSES.values())
    return isinstance(module, _LAYERS) and type(module) not in known


@torch.no_grad()
def note_attention(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Notes at every attention whether its query, key and value are different tensors, in place.

    Brevitas projects them by one layer only where they are one tensor.
    """

    def note(attention: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        given = (*args, *(kwargs[key] for key in ("query", "key", "value") if key in kwargs))
        attention.joins_tensors = joins_tensors(attention) or len({*map(id, given[:3])}) > 1

    found = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    with ExitStack() as stack:
        for attention in found:
            handle = attention.register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
        if found:
            model(*args, **kwargs)


def joins_tensors(attention: nn.Module) -> bool:
    """What `note_attention` found."""
    return getattr(attention, "joins_tensors", False)


class EncoderLayer(nn.TransformerEncoderLayer):
    """Self-attention and two linear layers, each beside an identity."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        def attended(x: Tensor) -> Tensor:
            return self.dropout1(_attention(self.self_attn, x, x, src_mask, src_key_padding_mask))

        if self.norm_first:
            x = src + attended(self.norm1(src))
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + attended(src))
        return self.norm2(x + self._ff_block(x))


class DecoderLayer(nn.TransformerDecoderLayer):
    """Self-attention, attention to the encoder's output, and two linear layers."""

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        def own(x: Tensor) -> Tensor:
            return self.dropout1(_attention(self.self_attn, x, x, tgt_mask, tgt_key_padding_mask))

        def other(x: Tensor) -> Tensor:
            masks = memory_mask, memory_key_padding_mask
            return self.dropout2(_attention(self.multihead_attn, x, memory, *masks))

        if self.norm_first:
            x = tgt + own(self.norm1(tgt))
            x = x + other(self.norm2(x))
            return x + self._ff_block(self.norm3(x))
        x = self.norm1(tgt + own(tgt))
        x = self.norm2(x + other(x))
        return self.norm3(x + self._ff_block(x))


class Encoder(nn.TransformerEncoder):
    """Encoder layers, and a norm where there is one."""

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


class Decoder(nn.TransformerDecoder):
    """Decoder layers, and a norm where there is one."""

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        masks = tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
        for layer in self.layers:
            tgt = layer(tgt, memory, *masks)
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(nn.Transformer):
    """An encoder and a decoder."""

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        memory = self.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask)
        return self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
        )


def _attention(
    attention: nn.Module, x: Tensor, memory: Tensor, mask: Tensor | None, padding: Tensor | None
) -> Tensor:
    masks = {"attn_mask": mask, "key_padding_mask": padding}
    return attention(x, memory, memory, need_weights=False, **masks)[0]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.TransformerEncoderLayer: EncoderLayer,
    nn.TransformerDecoderLayer: DecoderLayer,
    nn.TransformerEncoder: Encoder,
    nn.TransformerDecoder: Decoder,
    nn.Transformer: Transformer,
}
