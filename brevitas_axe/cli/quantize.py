"""`brevitas-axe quantize`: the whole job on the user's own model and data."""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brevitas_axe.cli import folders, language, options, preview
from brevitas_axe.cli.usercode import batches_of
from brevitas_axe.errors import AxeError, InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.cli.screen import Screen
    from brevitas_axe.proof.certificate import Certificate
    from brevitas_axe.run.request import Request
    from brevitas_axe.run.result import QuantizeResult
    from brevitas_axe.run.saving.save import Result
    from brevitas_axe.run.validated import Validated

_LEAST_WEIGHT_BITS = 2  # symmetric and narrow: from -1 to 1
_USUAL_BITS = {"weight": 4, "input": 8}


def add(commands) -> None:
    parser = commands.add_parser(
        "quantize",
        help="quantize, prove and export your own model",
        description="Writes model.onnx, plan.json, recipe.yaml, certificate.json, summary.json, "
        "report.html and the folder model, with which `finetune`, `certify` and `export` go on. A "
        "model that is solved block by block has integers.npz instead of model.onnx; for a "
        "language model (--hf), there are rows.json and such a folder per row.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="FILE.py:FUNCTION",
        help="returns the torch model; or a folder that another command wrote",
    )
    folders.add_model(parser)
    parser.add_argument(
        "--calibration", metavar="FILE.py:FUNCTION", help="returns an iterable of input batches"
    )
    language.add_options(parser)
    options.add_accumulator(parser)
    for name, usual in _USUAL_BITS.items():
        parser.add_argument(
            f"--{name}-bits",
            type=int,
            metavar="N",
            help=f"default {usual}; a model with quantizers keeps its own",
        )
    options.add_widths(parser)
    options.add_tile(parser)
    options.add_plan(parser)
    options.add_recipe(parser)
    options.add_picked(parser)
    options.add_rules(parser)
    options.add_run(
        parser,
        "folder for progress; a killed run continues from it",
        "solve the rows of a layer in N processes, -1 for one per core",
    )
    parser.add_argument(
        "--target",
        choices=["finn", "qonnx"],
        default="qonnx",
        help="finn: a float model is prepared for it, and what FINN would refuse is told before "
        "anything is solved; qonnx (default): any tool that reads QONNX",
    )
    parser.add_argument("--output", default="results", metavar="DIR", help="default: results")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: print the layers, what stays in float, which rows each accumulator "
        "would clip, time and memory, and what FINN would refuse",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.weight_bits is not None and arguments.weight_bits < _LEAST_WEIGHT_BITS:
        raise InvalidOption(
            f"--weight-bits {arguments.weight_bits} leaves no weight but zero; give "
            f"{_LEAST_WEIGHT_BITS} or more."
        )
    if arguments.hf is not None:
        options.refuse_widths(arguments)
        for name, usual in _USUAL_BITS.items():
            if getattr(arguments, f"{name}_bits") is None:
                setattr(arguments, f"{name}_bits", usual)
        return language.run(arguments)
    _check(arguments)
    from brevitas_axe.cli.screen import Screen
    from brevitas_axe.run.checks import check_saving
    from brevitas_axe.run.quantize import quantize
    from brevitas_axe.run.request import requested
    from brevitas_axe.run.saving.folder import INSIDE, check_place
    from brevitas_axe.run.saving.save import save
    from brevitas_axe.run.validated import validated
    from brevitas_axe.show import open_folder, write_folder

    plan = options.plan_of(arguments)
    exclude, recipe = options.named(arguments), options.recipe_of(arguments)
    validate, screen = options.validation_of(arguments), Screen(arguments)
    run = options.run_of(arguments)
    keywords = {
        **_widths(arguments),
        **options.recipe_keywords(arguments),
        **options.widths_keywords(arguments),
    }
    request = requested(plan, recipe, exclude, run, keywords)  # refuses before anything is loaded
    if arguments.target == "finn":
        request.check_integers("FINN builds")
    if arguments.dry_run:
        model = folders.model_from(arguments.model, arguments)
        batches = batches_of(arguments.calibration)
        if arguments.target == "finn":
            model, keywords = _for_finn(model, batches, keywords, refuse=False)
        asked = {"plan": plan, "recipe": recipe, "exclude": exclude, **keywords}
        return preview.run(arguments, model, batches, asked)
    folder = open_folder(arguments.output)
    kept = check_place(folder / INSIDE)
    model = folders.model_from(arguments.model, arguments)
    check_saving(model, arguments.output)
    batches = batches_of(arguments.calibration)
    keywords |= _ranges(model, arguments.model, request)
    if arguments.target == "finn":
        model, keywords = _for_finn(model, batches, keywords)

    if kept.is_dir():
        screen.line(f"{kept} is replaced at the end")
    start = time.perf_counter()
    result = quantize(model, batches, plan, recipe, exclude=exclude, run=run, **keywords)
    save(result, kept)
    try:
        path, certificate, resources = exported(
            result, batches[0], folder, result.exclude, arguments.target
        )
    except AxeError as error:
        sentence = str(error).rstrip(".")
        raise type(error)(f"{sentence}; what was solved is kept in {kept}.") from error
    numbers = {}
    if validate is not None:
        row = validated(arguments.validate, validate, model, batches, result, run)
        numbers = {arguments.output: row}
    summary = _summary(arguments, result, resources, numbers)
    summary["seconds"] = round(time.perf_counter() - start, 1)
    files = write_folder(folder, summary, certificate, result.plan, result.recipe)
    written = [str(file) for file in (path, *files, kept)]
    screen.json({**summary, "proven": certificate.ok, "files": written})
    _say_resumed(screen, result, arguments.state)
    screen.shares(result.shares)
    for row in result.tried:
        screen.line(", ".join(f"{k} {v:.4g}" if k != "widths" else v for k, v in row.items()))
    screen.table(certificate.table())
    screen.numbers(numbers)
    screen.files(written)
    screen.next(*_next(arguments, certificate, result))
    return 0 if certificate.ok else 1


def _summary(
    arguments: argparse.Namespace,
    result: QuantizeResult,
    resources: list[Any],
    numbers: Mapping[str, Validated],
) -> dict[str, Any]:
    """What summary.json tells of the run, and the page shows."""
    return {
        "title": f"{arguments.model}, quantized for narrow accumulators",
        "accumulator": arguments.accumulator_bits,
        "tile": arguments.tile_size,
        "arms": [],
        "layers": result.layers,
        "resources": resources,
        "tried": list(result.tried),
        "shares": list(result.shares),
        "validation": {name: asdict(row) for name, row in numbers.items()},
        "assumptions": list(result.assumptions),
        "environment": {"solver": str(result.recipe.solver), "quality": result.recipe.quality},
    }


def _say_resumed(screen: Screen, result: QuantizeResult, state: str | None) -> None:
    """Says how much of the work an earlier run had done."""
    resumed = sum(bool(entry.get("resumed")) for entry in result.layers)
    if resumed:
        screen.line(f"{resumed} of {len(result.layers)} layers were solved already, in {state}")


def _next(
    arguments: argparse.Namespace, certificate: Certificate, result: QuantizeResult
) -> list[str]:
    from brevitas_axe.cli.screen import command
    from brevitas_axe.run.result import BlocksResult

    own, output = folders.own_model(arguments), arguments.output
    if not certificate.ok:
        return [command("certify", output, *own)]
    steps = [command("finetune", output, *own, "--data", "FILE.py:FUNCTION")]
    if arguments.target == "finn" and not isinstance(result, BlocksResult):
        return [*steps, command("mend", output, *own)]
    if isinstance(result, BlocksResult):
        place = "layers" if result.floats else "finn.onnx"
        return [*steps, command("export", output, f"{output}/{place}", *own)]
    return [*steps, command("cost", output, *own)]


def exported(
    result: Result, batch: Any, folder: Path, exclude: tuple[str, ...], target: Any
) -> tuple[Path, Certificate, list[Any]]:
    """Writes the model's file; returns its path, its proof and the resources of its layers."""
    from brevitas_axe.export import export_qonnx
    from brevitas_axe.files import write_whole
    from brevitas_axe.methods.cost import resource_rows
    from brevitas_axe.model.attention_products import with_products
    from brevitas_axe.proof.certificate import certify_file

    if _multiplies_floats(result):
        path = folder / "integers.npz"
        write_whole(path, language.integers(result.model))
        return path, result.certificate, []
    path = folder / "model.onnx"
    example = _example(result.model, batch)
    export_qonnx(result.model, example, path, target=target)
    # The file is proven, not the live model: the next tool reads the file.
    plan = with_products(result.plan, result.model)
    certificate = certify_file(path, plan=plan, exclude=exclude)
    return path, certificate, resource_rows(result.model, example, result.plan, exclude)


def _multiplies_floats(result: Result) -> bool:
    """Whether a transformer multiplies floats, so that no QONNX file is proven as a whole."""
    from brevitas_axe.model.stack import left_in_float
    from brevitas_axe.run.finetune import FinetuneResult
    from brevitas_axe.run.result import BlocksResult

    if isinstance(result, BlocksResult):
        return bool(result.floats)
    modules = dict(result.model.named_modules())
    products = any(name not in modules for name in result.exclude)
    return isinstance(result, FinetuneResult) and (products or bool(left_in_float(result.model)))


def _ranges(model: Any, reference: str, request: Request) -> dict[str, str]:
    """The keyword by which ranges are fitted, where none are asked for and no one trained them."""
    from brevitas_axe.methods.ranges import USUAL_FITTER
    from brevitas_axe.model.prepare import has_quantizers

    if request.recipe.ranges is not None:
        return {}
    untrained = folders.is_only_prepared(reference) or not has_quantizers(model)
    return {"ranges": USUAL_FITTER} if untrained else {}


def _for_finn(
    model: Any, batches: list[Any], keywords: dict[str, Any], refuse: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The model as FINN builds it, and the keywords that are left for the solve.

    What FINN would refuse is told here, before the solve, unless `refuse` is False.
    """
    from brevitas_axe.export.finn.prepare import made_for_finn, refuse_for_finn
    from brevitas_axe.model.prepare import as_batches, has_quantizers

    given = as_batches(batches, model)
    if has_quantizers(model):
        if refuse:
            refuse_for_finn(model.eval(), given[0])
        return model, keywords
    bits = {f"{name}_bit_width": usual for name, usual in _USUAL_BITS.items()}
    wanted = {key: keywords.get(key, usual) for key, usual in bits.items()}
    prepared = made_for_finn(model, given, **wanted)
    if refuse:
        refuse_for_finn(prepared, given[0])
    return prepared, {key: value for key, value in keywords.items() if key not in bits}


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that do not go together, before anything is loaded."""
    stray = language.given(arguments)
    if stray:
        raise InvalidOption(
            f"{', '.join(stray)}: for language models only; give --hf PATH_OR_NAME, or leave out."
        )
    if arguments.model is None or arguments.calibration is None:
        raise InvalidOption(
            "give FILE.py:FUNCTION and --calibration FILE.py:FUNCTION, or --hf and --text."
        )
    limited = arguments.accumulator_bits is not None or arguments.budget
    if not limited and arguments.plan is None and not arguments.dry_run:
        raise InvalidOption(
            "give --accumulator-bits, --plan with a width per layer, or --widths auto and --budget."
        )


def _widths(arguments: argparse.Namespace) -> dict[str, Any]:
    """Widths of all layers, as keywords of `quantize`; a plan has accumulators and tiles."""
    widths = {
        "accumulator_bit_width": arguments.accumulator_bits,
        "tile_size": arguments.tile_size,
    }
    for name in _USUAL_BITS:
        bits = getattr(arguments, f"{name}_bits")
        if bits is not None:
            widths[f"{name}_bit_width"] = bits
    return widths


def _example(model: Any, batch: Any) -> tuple[Any, ...]:
    """One sample of a calibration batch as export arguments, which are positional."""
    from brevitas_axe.model.prepare import as_batches, one_sample

    [batch] = as_batches([batch], model)
    args, kwargs = one_sample(batch)
    return inspect.signature(model.forward).bind(*args, **kwargs).args
