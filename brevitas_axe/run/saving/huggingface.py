"""Models of transformers: their configuration in the folder, and no silent float model from it.

`from_pretrained` alone finds no weights under a name that it knows, and says so; where this module
was imported before, it says what to call instead.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_axe.errors import InvalidOption, InvalidState
from brevitas_axe.files import json_text

CONFIG = "config.json"
METHOD = "brevitas_axe"
_ADVICE = (
    "the folder holds a model that brevitas_axe quantized, which from_pretrained would read as a "
    "float model; use brevitas_axe.load(folder)."
)


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is one of transformers; false where that is not even imported."""
    return "transformers" in sys.modules and isinstance(
        model, sys.modules["transformers"].PreTrainedModel
    )


def facts(model: nn.Module) -> dict[str, Any]:
    """What its configuration file does not say."""
    if not is_pretrained(model):
        return {}
    config: Any = model.config
    return {"attention": getattr(config, "_attn_implementation", None)}


def write_config(model: Any, folder: Path) -> None:
    """Writes config.json, which says that the model is quantized."""
    if not is_pretrained(model):
        return
    refuse_from_pretrained()
    config = copy.deepcopy(model.config)
    content = json.loads(config.to_json_string(use_diff=True))
    content["architectures"] = [type(model).__name__]
    content["quantization_config"] = {"quant_method": METHOD}
    (folder / CONFIG).write_text(json_text(content))


def built(folder: Path, content: dict[str, Any]) -> nn.Module | None:
    """The float architecture of the folder's config.json; None where it has none.

    Raises:
        InvalidState: a class that transformers does not have.
    """
    if not (folder / CONFIG).is_file():
        return None
    try:
        import transformers
    except ImportError:
        raise InvalidOption(
            "the folder holds a model of transformers: pip install 'brevitas_axe[transformers]'."
        ) from None
    refuse_from_pretrained()
    config = transformers.AutoConfig.from_pretrained(folder)
    vars(config).pop("quantization_config", None)
    [name] = config.architectures or [""]
    kind = getattr(transformers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise InvalidState(
            f"{folder / CONFIG} names the class '{name}', which transformers "
            f"{transformers.__version__} does not have; give load the model."
        )
    options = (
        {} if content.get("attention") is None else {"attn_implementation": content["attention"]}
    )
    return kind._from_config(config, **options)


def refuse_save_pretrained(model: nn.Module) -> nn.Module:
    """The model, whose save_pretrained names `save` from now on, and writes nothing."""
    if is_pretrained(model):
        vars(model)["save_pretrained"] = _refused
    return model


def _refused(*_: Any, **__: Any) -> None:
    raise InvalidOption(
        "save_pretrained would write the weights without their quantizers, and from_pretrained "
        "read a float model from them; use brevitas_axe.save(result, folder)."
    )


def refuse_from_pretrained() -> None:
    """From now on, transformers says what to call for a folder of ours."""
    from transformers.quantizers import auto
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return

    class Config(QuantizationConfigMixin):
        def __init__(self, quant_method: str = METHOD, **_: Any) -> None:
            self.quant_method = quant_method  # type: ignore[assignment]

    class Refusing(HfQuantizer):
        def __init__(self, *_: Any, **__: Any) -> None:
            raise InvalidOption(_ADVICE)

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return False

    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = Config
    auto.AUTO_QUANTIZER_MAPPING[METHOD] = Refusing
