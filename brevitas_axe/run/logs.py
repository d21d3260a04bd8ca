"""Numbers of a long run, to be watched while it goes on: TensorBoard, MLflow, or any function.

A log is a function of a name, a value and a step (`brevitas_axe.recipe.Log`), which is what both
packages have already; `Run(log=...)` takes it. They are optional, and imported when one is named.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.recipe import Log
    from brevitas_axe.run.solve import axe_mode


def log_numbers(log: Log | None, what: str, entry: Mapping[str, Any], step: int) -> None:
    """Logs every finite number of an entry, as "what/key".

    Args:
        log: None logs nothing.
        what: the entry is about: a layer, an epoch, a trial.
        entry: key → value; values that are no numbers are left out.
        step: number of the entry.
    """
    if log is None:
        return
    for key, value in entry.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and math.isfinite(value):
            log(f"{what}/{key}", value, step)


def solved_layers(
    axe: axe_mode, log: Log | None, numbers: Iterator[int]
) -> Iterator[Mapping[str, Any]]:
    """Solves all layers of a mode, one after another; gives the entry of each, which is logged.

    Args:
        axe: has been given all batches.
        log: of the run.
        numbers: of the layers, across modes.
    """
    more = True
    while more:
        known = len(axe.log)
        more = axe.update()
        for entry in axe.log[known:]:
            log_numbers(log, "layer", entry, next(numbers))
            yield entry


def opened(spec: str | None) -> AbstractContextManager[Log | None]:
    """The log that a text names, closed in the end; None without one.

    Args:
        spec: "tensorboard:FOLDER" or "mlflow:EXPERIMENT"; where MLflow writes is told by its own
            MLFLOW_TRACKING_URI.

    Raises:
        InvalidOption: another text, a package that is not installed, a file for a folder, or
            MLflow's own refusal.
    """
    if spec is None:
        return nullcontext()
    kind, _, place = spec.partition(":")
    if kind not in _KINDS or not place:
        raise InvalidOption(f"a log is tensorboard:FOLDER or mlflow:EXPERIMENT, not '{spec}'.")
    module, opening = _KINDS[kind]
    try:
        package = importlib.import_module(module)
    except ImportError:
        raise InvalidOption(
            f"the package {kind} is not installed; add it: pip install 'brevitas_axe[{kind}]'."
        ) from None
    return opening(package, place)


@contextmanager
def _tensorboard(package: Any, folder: str) -> Iterator[Log]:
    if Path(folder).is_file():
        raise InvalidOption(f"{folder} is a file; a log of TensorBoard takes a folder.")
    with ExitStack() as stack:

        @cache
        def writer() -> Any:
            # Runs are slow and numbers few, so each is seen soon.
            return stack.enter_context(package.SummaryWriter(folder, flush_secs=10))

        # It makes its folder, which a command that is refused is not to leave behind.
        yield lambda name, value, step: writer().add_scalar(name, value, step)


@contextmanager
def _mlflow(package: Any, experiment: str) -> Iterator[Log]:
    try:
        package.set_experiment(experiment)
        run = package.start_run()
    except Exception as error:  # of the store behind it: a folder, a database or a server
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise InvalidOption(f"mlflow cannot open '{experiment}': {reason}.") from error
    with run:
        # It takes these characters only.
        yield lambda name, value, step: package.log_metric(
            re.sub(r"[^\w/. -]", "_", name), value, step=step
        )


# Kind → the module that is imported for it, and what opens a log of it.
_KINDS: Mapping[str, tuple[str, Callable[[Any, str], AbstractContextManager[Log]]]] = {
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "mlflow": ("mlflow", _mlflow),
}
