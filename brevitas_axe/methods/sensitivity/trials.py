"""Independent pieces of work: in parallel through joblib, each kept on disk when it is done.

Threads by default. `joblib.parallel_config(backend="loky")` around the call takes processes, and
backend="dask" or "ray" the machines of a cluster, with nothing changed here. Ray's backend hands
results over all at once, so that there they are written only when the last one is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from brevitas_axe.errors import NonFiniteValues
from brevitas_axe.files import Journal

Value = Any  # a number, or a list of numbers


class Trials:
    """Runs work and remembers results by content.

    Args:
        fingerprint: of everything that results depend on besides their keys.
        folder: where results are kept; None forgets them. A killed run continues from it.
        workers: how many run at once.
        progress: show a progress bar.
    """

    def __init__(
        self,
        fingerprint: str = "",
        folder: str | Path | None = None,
        workers: int = 1,
        progress: bool = False,
    ) -> None:
        self.workers, self.progress = workers, progress
        self._journal: Journal | None = None
        self._known: dict[str, Value] = {}
        self.run_count = 0
        if folder is not None:
            self._journal = Journal(Path(folder) / f"trials-{fingerprint[:32]}.jsonl", "trials")
            self._known.update((str(key), value) for key, value in self._journal.records)

    def map(
        self, function: Callable[..., Value], work: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Value]:
        """function(*arguments) for every (key, arguments), in order; known keys are not run.

        Raises:
            NonFiniteValues: a result is NaN or infinite.
        """
        missing = [(key, arguments) for key, arguments in work if key not in self._known]
        tasks = (delayed(_keyed)(function, key, arguments) for key, arguments in missing)
        results: Any = _parallel(self.workers)(tasks) if missing else ()
        for key, value in tqdm(
            results, total=len(missing), desc="trials", disable=not self.progress or not missing
        ):
            self._keep(key, value)
        return [self._known[key] for key, _ in work]

    def run(self, function: Callable[..., Any], work: Iterable[tuple[Any, ...]]) -> list[Any]:
        """function(*arguments) for all arguments, in order, whatever it gives; nothing is kept."""
        return list(Parallel(self.workers, prefer="threads")(delayed(function)(*a) for a in work))

    def knows(self, key: str) -> bool:
        """True when the result of this key is stored already."""
        return key in self._known

    def _keep(self, key: str, value: Value) -> None:
        if not all(map(math.isfinite, value if isinstance(value, list) else [value])):
            raise NonFiniteValues(
                f"the trial '{key}' gave NaN or infinity; check the model and the calibration data."
            )
        self._known[key] = value
        self.run_count += 1
        if self._journal is not None:
            self._journal.add(key, value)


def _parallel(workers: int) -> Parallel:
    """A generator of results as they come; a list where joblib's backend has no generators."""
    try:
        return Parallel(workers, prefer="threads", return_as="generator_unordered")
    except ValueError:
        return Parallel(workers, prefer="threads")


def _keyed(
    function: Callable[..., Value], key: str, arguments: tuple[Any, ...]
) -> tuple[str, Value]:
    return key, function(*arguments)
