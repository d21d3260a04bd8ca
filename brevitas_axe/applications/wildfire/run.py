"""The whole job: every arm of both nets for every seed, one table, one page, two proven files."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from brevitas_axe.applications.quickstart import one_thread
from brevitas_axe.applications.wildfire.arms import SCORES, TASKS, USUAL, Arm, Case, Settings, arms
from brevitas_axe.applications.wildfire.measures import CERTIFIED, measured
from brevitas_axe.applications.wildfire.page import markdown_page, page
from brevitas_axe.errors import InvalidState
from brevitas_axe.files import Journal, json_text, write_whole
from brevitas_axe.run.saving.folder import versions
from brevitas_axe.show import open_folder

Row = Mapping[str, Any]
# Largest loss of accuracy by 8 bits, in points: what was published, rounded up (arXiv 2401.08105).
_DROP = 1.3


def wildfire(
    output: str | Path, settings: Settings = USUAL, progress: bool = True
) -> dict[str, Any]:
    """Runs all arms that the folder has not, and writes what they gave.

    Args:
        output: folder for report.html, report.md, summary.json, and for each net the file of the
            last arm with its certificate: classifier.onnx, classifier.certificate.json, and so on.
            In `arms` is what every arm has left, and the journal from which a second call goes on.
        settings: of the run.
        progress: show progress bars.

    Returns:
        The summary: "source" of the pictures, "rows" by task, "claims", "proven", "settings",
        "environment" and "files".

    Raises:
        InvalidState: the folder holds a run with other settings.
        InvalidOption: pictures are missing.
    """
    folder = open_folder(output)
    journal = Journal(folder / "arms" / "journal.jsonl", "arms")
    _same_run(journal, settings, folder)
    known = {tuple(key): row for kind, *key, row in journal.records if kind == "arm"}
    nets = [(seed, task) for seed in range(settings.seeds) for task in TASKS]
    found = arms(settings)
    with one_thread(), tqdm(total=len(nets) * len(found), disable=not progress) as bar:
        for seed, task in nets:
            place = folder / "arms" / f"{task}-{seed}"
            case = Case(task, seed, settings, place, progress)  # one at a time in memory
            for arm in found:
                bar.set_description(f"{task}, {arm.name}")
                if (task, seed, arm.name) not in known:
                    row = {**measured(case, arm), "source": case.pictures.source}
                    known[task, seed, arm.name] = row
                    journal.add("arm", task, seed, arm.name, row)
                bar.update()
    return _written(folder, settings, known)


def _same_run(journal: Journal, settings: Settings, folder: Path) -> None:
    """Refuses a folder that belongs to other settings; a new one is given these."""
    mine = asdict(settings)
    if not journal.records:
        journal.add("settings", mine)
    theirs = journal.records[0][-1]
    other = next((name for name in mine if mine[name] != theirs.get(name)), None)
    if other is not None:
        raise InvalidState(
            f"{folder} holds a run with {other} {theirs.get(other)}, not {mine[other]}; choose "
            "another folder, or delete it."
        )


def _written(folder: Path, settings: Settings, known: Mapping[tuple, Row]) -> dict[str, Any]:
    """Writes the page and the files of the last arm."""
    found = arms(settings)
    rows = {task: [_row(task, arm, settings, known) for arm in found] for task in TASKS}
    files = []
    for task in TASKS:
        case = Case(task, 0, settings, folder / "arms" / f"{task}-0")
        for ending in CERTIFIED:
            file = folder / f"{task}{ending}"
            write_whole(file, case.place(found[-1]).with_suffix(ending).read_bytes())
            files.append(str(file))
    summary = {
        "title": "Fires seen from a drone",
        "source": known[TASKS[-1], settings.seeds - 1, found[-1].name]["source"],
        "rows": rows,
        "claims": claims(known, settings),
        "proven": all(known[task, 0, found[-1].name]["proven"] for task in TASKS),
        "settings": asdict(settings),
        "environment": {
            **versions(("torch", "brevitas", "onnxruntime")),
            "CPU of the times": _processor(),
        },
    }
    pages = {
        "report.html": page(summary),
        "report.md": markdown_page(summary),
        "summary.json": json_text(summary),
    }
    for name, text in pages.items():
        write_whole(folder / name, text.encode())
    return {**summary, "files": [*(str(folder / name) for name in pages), *files]}


def _row(task: str, arm: Arm, settings: Settings, known: Mapping[tuple, Row]) -> dict[str, Any]:
    """One arm over all seeds: means of numbers, and standard errors of scores."""
    each = [known[task, seed, arm.name] for seed in range(settings.seeds)]
    row: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "bits": each[0]["bits"]}
    for key, value in each[0].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        values = [one[key] for one in each if key in one]
        row[key] = statistics.fmean(values)
        if len(values) > 1 and key in SCORES:
            row[f"{key}_error"] = statistics.stdev(values) / len(values) ** 0.5
    if "proven" in each[0]:
        row["accumulator"] = max(one["accumulator"] for one in each)
        row["proven"] = all(one["proven"] for one in each)
        row["refused"] = sorted({sentence for one in each for sentence in one["refused"]})
    return row


def claims(known: Mapping[tuple, Row], settings: Settings) -> list[dict[str, Any]]:
    """What is to be shown, and whether this run shows it; each a "claim", "met" and "found"."""
    found = []
    for task in TASKS:
        key = {"classifier": "accuracy", "unet": "miou"}[task]
        rows = [
            {arm: row for (*net, arm), row in known.items() if net == [task, seed]}
            for seed in range(settings.seeds)
        ]
        lost = [100 * (row["FP32"][key] - row["PTQ W8A8"][key]) for row in rows]
        gained = [100 * (row["QAT W4A4"][key] - row["PTQ W4A4"][key]) for row in rows]
        measured_arms = [arm for row in rows for arm in row.values()]
        refused = [text for arm in measured_arms for text in arm.get("refused", ())]
        found += [
            {
                "claim": f"{task}: PTQ W8A8 loses at most {_DROP} points of {key}",
                "met": statistics.fmean(lost) <= _DROP,
                "found": _listed(lost),
            },
            {
                "claim": f"{task}: QAT W4A4 gains {key} over PTQ W4A4 with every seed",
                "met": min(gained) > 0,
                "found": _listed(gained),
            },
            {
                "claim": f"{task}: `check` finds nothing that FINN would refuse in any arm",
                "met": not refused,
                "found": f"{len(refused)} findings",
            },
        ]
    return found


def _listed(points: Sequence[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in points) + " points"


def _processor() -> str:
    """Name of the CPU, as far as it is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
