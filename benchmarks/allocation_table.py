"""Results of `allocation.py`: means over seeds, the verdict, the plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from records import drawing

JOINT = "search"
REFERENCE = "uniform W4A4"


def averages(rows: Sequence[dict]) -> list[dict]:
    """Mean over seeds of every allocator at every share, beside uniform W4A4.

    The error of a difference in accuracy is that of its mean over images, each of which counts
    with its mean over seeds.
    """
    groups: dict[tuple[str, float], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["allocator"], row["share"]), []).append(row)
    reference = groups[REFERENCE, 1.0]

    def of(group: Sequence[dict], key: str) -> float:
        return mean(row[key] for row in group)

    def right(group: Sequence[dict]) -> np.ndarray:
        return np.mean([[int(r) for r in row["right"]] for row in group], axis=0)

    table = []
    for (allocator, share), group in groups.items():
        seeds = {row["seed"] for row in group}
        gains = right(group) - right([row for row in reference if row["seed"] in seeds])
        table.append(
            {
                "allocator": allocator,
                "budget": share,
                "LUT": of(group, "lut") / of(reference, "lut"),
                "accuracy": of(group, "accuracy"),
                "against W4A4": gains.mean(),
                "error": gains.std() / len(gains) ** 0.5,
                "agreement": of(group, "agreement"),
                "divergence": of(group, "divergence"),
                "seeds": len(group),
                "certified": all(row["certified"] for row in group),
                "exported": all(row["exported"] for row in group),
            }
        )
    return table


def verdict(table: Sequence[dict]) -> dict:
    """The claims of the benchmark, as numbers.

    Returns:
        least_gain: smallest accuracy of the joint search minus that of uniform, over budgets.
        share_needed: by measure, least share of LUTs at which the joint search is as near to the
            float model as uniform W4A4, or as accurate; None if it never is.
        augmented_gain: accuracy of the augmented order minus that of the layer-wise one.
    """
    found = {(row["allocator"], row["budget"]): row for row in table}
    joint = [row for row in table if row["allocator"] == JOINT]
    wanted = found[REFERENCE, 1.0]

    def needed(key: str, sign: int) -> float | None:
        enough = [row["LUT"] for row in joint if sign * row[key] >= sign * wanted[key]]
        return min(enough, default=None)

    gains = [
        row["accuracy"] - found["uniform", row["budget"]]["accuracy"]
        for row in joint
        if ("uniform", row["budget"]) in found
    ]
    orders = [r["accuracy"] for r in table if r["allocator"] in ("augmented", "layer-wise")]
    return {
        "least_gain": min(gains, default=None),
        "share_needed": {
            "accuracy": needed("accuracy", 1),
            "agreement": needed("agreement", 1),
            "divergence": needed("divergence", -1),
        },
        "augmented_gain": orders[0] - orders[1] if orders else None,
    }


def draw(table: Sequence[dict], path: Path) -> None:
    """Accuracy against look-up tables; bars are errors of the difference from uniform W4A4."""
    with drawing(
        path, "ResNet-32, CIFAR-10", "LUTs, share of uniform W4A4", "top-1 accuracy, %"
    ) as axes:
        for place, name in enumerate(dict.fromkeys(row["allocator"] for row in table)):
            group = sorted(
                (row["LUT"], 100 * row["accuracy"], 100 * row["error"])
                for row in table
                if row["allocator"] == name
            )
            x, y, error = zip(*group, strict=True)
            # Ten colours, and markers that change with each, so that no two series look alike; a
            # little aside, so that their bars do not cover each other.
            x = [share + 0.002 * (place - 5) for share in x]
            style = {"color": f"C{place % 10}", "marker": "osD^vP*X<>h"[place % 11]}
            axes.errorbar(x, y, error, **style, capsize=2, elinewidth=1, label=name)
