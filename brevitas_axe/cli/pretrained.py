"""Models of transformers from the disk, their tokens, and how good they are."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brevitas_axe.errors import InvalidOption

Kind = Literal["causal", "encoder"]


def transformers_package() -> Any:
    try:
        import transformers
    except ImportError:
        raise InvalidOption(
            "--hf needs transformers: pip install 'brevitas_axe[transformers]'."
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def config_of(transformers: Any, name: str) -> tuple[Kind, Any]:
    """Whether a model on the disk generates text or encodes it, and its configuration."""
    with _loading(name):
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True)
    kinds = config.architectures or []
    text = config.get_text_config()
    if any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        return "causal", text
    if config.is_encoder_decoder or getattr(text, "vocab_size", None) is None:
        raise InvalidOption(
            f"{name} neither generates text nor encodes it ({', '.join(kinds) or 'no architecture'}"
            "); call brevitas_axe.quantize_blocks from Python."
        )
    return "encoder", text


def model_of(transformers: Any, name: str) -> Any:
    """The model itself, in float32."""
    kind, _ = config_of(transformers, name)
    loader = transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModel
    with _loading(name):
        model = loader.from_pretrained(name, local_files_only=True, dtype="float32")
    model.config.use_cache = False
    if getattr(model.config, "output_router_logits", False):
        # It adds a loss for training, which is computed behind the blocks, in float.
        model.config.output_router_logits = False
    return model.eval()


@dataclass(frozen=True)
class Measure:
    """How good a language model is.

    Attributes:
        name: of the number: perplexity of what generates text; of encoders the mean cosine of each
            window's embedding, the mean of its last hidden states, to that of the float model.
        best: of some values of it.
        of: the number of a model.
    """

    name: str
    best: Callable[..., Any]
    of: Callable[[Any], float]


def measure_of(transformers: Any, name: str, model: Any, rows: Any) -> Measure:
    """The measure for a model.

    Args:
        transformers: the package.
        name: of the model.
        model: the float model.
        rows: windows to be judged on, [windows, context + 1].
    """
    from brevitas_axe.run.text import embeddings, mean_cosine, perplexity

    if config_of(transformers, name)[0] == "causal":
        return Measure("perplexity", min, lambda judged: perplexity(judged, rows))
    wanted = embeddings(model, rows)
    return Measure("cosine", max, lambda judged: mean_cosine(embeddings(judged, rows), wanted))


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turns errors of transformers while loading into one sentence."""
    try:
        yield
    except Exception as error:  # every file format has exceptions of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise InvalidOption(
            f"{name} cannot be loaded: {reason}; give a whole model folder, or download it again."
        ) from error


def data_of(transformers: Any, arguments: argparse.Namespace) -> tuple[list[Any], Any]:
    """Calibration batches [windows, context] and evaluation rows [windows, context + 1]."""
    from brevitas_axe.run.text import split

    _, config = config_of(transformers, arguments.hf)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and arguments.context > positions:
        raise InvalidOption(
            f"--context {arguments.context} is more than the {positions} positions of "
            f"{arguments.hf}; give {positions} or fewer."
        )
    tokens = _tokens(transformers, arguments, config.vocab_size)
    return split(tokens, arguments.context, arguments.windows)


def _tokens(transformers: Any, arguments: argparse.Namespace, vocabulary: int) -> Any:
    import torch

    from brevitas_axe.run.text import characters

    try:
        text = Path(arguments.text).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidOption(f"{arguments.text} is not UTF-8 text.") from None
    if not text.strip():
        raise InvalidOption(f"{arguments.text} is empty; give a text to calibrate with.")
    if arguments.characters:
        return characters(text, vocabulary)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.hf, local_files_only=True)
        tokens = tokenizer(text, verbose=False)["input_ids"]
    except (OSError, ValueError, ImportError):
        tokens = []
    if not tokens:  # transformers makes an empty tokenizer where the folder has none
        raise InvalidOption(
            f"{arguments.hf} has no usable tokenizer; give --characters if its tokens are "
            "characters."
        )
    return torch.tensor(tokens)
