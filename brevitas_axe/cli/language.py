"""`brevitas-axe quantize --hf`: a causal language model of transformers, judged by perplexity."""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

from brevitas_axe.errors import InvalidOption

Row = tuple[int | None, int]  # tile size, accumulator bits


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("language models")
    group.add_argument("--hf", metavar="PATH_OR_NAME", help="a local or cached transformers model")
    group.add_argument(
        "--text", metavar="FILE", help="UTF-8; nine tenths calibrate, the last tenth judges"
    )
    group.add_argument(
        "--characters", action="store_true", help="one token per character; no tokenizer"
    )
    group.add_argument(
        "--rows",
        nargs="+",
        metavar="TxP",
        help="tile sizes and accumulator widths to compare, such as 64x16 128x14",
    )
    group.add_argument("--context", type=int, default=128, metavar="N", help="tokens per window")
    group.add_argument(
        "--windows", type=int, default=128, metavar="N", help="windows to calibrate with"
    )
    group.add_argument(
        "--activations",
        choices=["static", "dynamic", "per_token"],
        default="static",
        help="scale of the inputs: calibrated, or found at run time",
    )
    group.add_argument("--asymmetric", action="store_true", help="inputs with a zero point")
    group.add_argument(
        "--smooth", type=float, metavar="ALPHA", help="SmoothQuant, 0.5 as published"
    )
    group.add_argument("--rotate", action="store_true", help="rotate inputs by Hadamard matrices")


def run(arguments: argparse.Namespace) -> int:
    if arguments.text is None or arguments.model is not None or arguments.plan is not None:
        raise InvalidOption("--hf goes with --text FILE, and with no other model, data or plan.")
    rows = _rows(arguments)
    transformers = _transformers()
    from brevitas_axe.blocks import quantize_blocks
    from brevitas_axe.blocks.text import perplexity, split
    from brevitas_axe.cli.screen import console
    from brevitas_axe.files import write_whole
    from brevitas_axe.report import open_folder, write_folder

    folder = open_folder(arguments.output)
    model = _model(transformers, arguments.hf)
    tokens = _tokens(transformers, arguments, model.config.vocab_size)
    batches, judged = split(tokens, arguments.context, arguments.windows)
    before = perplexity(model, judged)
    results: list[dict[str, Any]] = [{"row": "float", "perplexity": before}]
    proven = True
    for index, (tile, bits) in enumerate(rows):
        model = _model(transformers, arguments.hf) if index else model
        name = f"{tile or 'whole'}x{bits}"
        start = time.perf_counter()
        result = quantize_blocks(
            model,
            batches,
            accumulator_bit_width=bits,
            tile_size=tile,
            weight_bit_width=arguments.weight_bits,
            input_bit_width=arguments.input_bits,
            activations=arguments.activations,
            symmetric=not arguments.asymmetric,
            smooth=arguments.smooth,
            rotate=arguments.rotate,
            algorithm=arguments.algorithm,
            quality=arguments.quality,
            act_order=arguments.act_order,
            exclude=tuple(arguments.exclude),
            state=None if arguments.state is None else Path(arguments.state) / name,
        )
        seconds = round(time.perf_counter() - start, 1)
        after = perplexity(result.model, judged)
        summary = {
            "title": f"{arguments.hf}, quantized for narrow accumulators",
            "accumulator": bits,
            "tile": tile,
            "arms": [],
            "layers": result.layers,
            "seconds": seconds,
            "environment": {
                "algorithm": arguments.algorithm,
                "quality": arguments.quality,
                "perplexity of the float model": round(before, 4),
                "perplexity": round(after, 4),
            },
        }
        place = open_folder(folder / name)
        write_whole(place / "integers.npz", _integers(result.model))
        write_folder(place, summary, result.certificate, result.plan)
        proven = proven and result.certificate.ok
        results.append(
            {
                "row": name,
                "perplexity": after,
                "tile": tile,
                "accumulator": bits,
                "inner": max(entry["inner_bits"] for entry in result.layers),
                "outer": max(entry["outer_bits"] or entry["inner_bits"] for entry in result.layers),
                "proven": result.certificate.ok,
                "seconds": seconds,
            }
        )
    write_whole(folder / "rows.json", (json.dumps(results, indent=2) + "\n").encode())
    console().print(_table(arguments.hf, results))
    print(folder / "rows.json")
    return 0 if proven else 1


def _rows(arguments: argparse.Namespace) -> list[Row]:
    """The rows of the table, from --rows or from the options for one accumulator."""
    if arguments.rows is None:
        if arguments.accumulator_bits is None:
            raise InvalidOption("give --accumulator-bits, or --rows such as 64x16.")
        return [(arguments.tile_size, arguments.accumulator_bits)]
    if (arguments.accumulator_bits, arguments.tile_size) != (None, None):
        raise InvalidOption("give either --rows or one accumulator and tile, not both.")
    rows: list[Row] = []
    for text in arguments.rows:
        tile, _, bits = text.partition("x")
        if not (tile.isdecimal() and bits.isdecimal()):
            raise InvalidOption(f"--rows takes tile size x accumulator bits, 64x16, not '{text}'.")
        rows.append((int(tile), int(bits)))
    return rows


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InvalidOption(
            "--hf needs transformers: pip install 'brevitas_axe[transformers]'."
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _model(transformers: Any, name: str) -> Any:
    """A causal language model from the disk, in float32."""
    try:
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True)
        kinds = config.architectures or []
        if not any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
            raise InvalidOption(
                f"{name} is no causal language model ({', '.join(kinds) or 'no architecture'}); "
                "call brevitas_axe.quantize_blocks from Python."
            )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, local_files_only=True, dtype="float32"
        )
    except (OSError, ValueError) as error:
        raise InvalidOption(f"{name} cannot be loaded: {_first_line(error)}") from error
    model.config.use_cache = False
    return model.eval()


def _tokens(transformers: Any, arguments: argparse.Namespace, vocabulary: int) -> Any:
    import torch

    from brevitas_axe.blocks.text import characters

    try:
        text = Path(arguments.text).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidOption(f"{arguments.text} is not UTF-8 text.") from None
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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _integers(model: Any) -> bytes:
    """A NumPy archive: <layer>.integers [outputs, inputs] and <layer>.scale [outputs]."""
    import numpy as np

    from brevitas_axe.layers import find_layers, integer_weight

    arrays: dict[str, Any] = {}
    for name, layer in find_layers(model).items():
        integers, scale = integer_weight(name, layer)
        arrays[f"{name}.integers"] = integers.to("cpu").numpy().astype(np.int32)
        arrays[f"{name}.scale"] = scale.flatten().to("cpu").numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _table(name: str, results: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(name))
    headings = ("tile × P", "perplexity", "P_I needed", "P_O needed", "overflow", "seconds")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in results:
        overflow = {True: "impossible", False: "possible", None: "–"}[row.get("proven")]
        needed = (str(row.get(key, "–")) for key in ("inner", "outer"))
        seconds = str(row.get("seconds", "–"))
        cells = (row["row"], f"{row['perplexity']:.4g}", *needed, overflow, seconds)
        table.add_row(*map(Text, cells))
    return table
