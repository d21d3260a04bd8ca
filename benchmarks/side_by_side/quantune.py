"""Trials until the best of a table is measured: Quantune's tables, our searchers.

    pip install pyreadr pandas 'brevitas_axe[tune]'
    python benchmarks/side_by_side/quantune.py

Reads `df_mfull.Rdata` of leejaymin/qaunt_xgboost (no licence: fetched, never kept here): six nets
for ImageNet, each with the top-1 accuracy of 48 configurations in eight bits. `warm` has learned
from the tables of the five other nets, `cold` from nothing. A random order measures the best one
at trial 24.5 on average. The authors' own curves count the predicted best before it is measured;
here a trial counts when it is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from statistics import mean, median
from typing import Any

import pyreadr
from official import official
from records import add_arguments, print_table, write_json

from brevitas_axe.methods.search.protocol import Record, Space
from brevitas_axe.registry import method

REPOSITORY = "leejaymin/qaunt_xgboost"
COMMIT = "c9042ff4b8b2eabf5ba524914727c6447599619f"
DECISIONS = ("profile", "granularity", "clipping", "schema")
FEATURES = ("nodes", "conv", "bn", "act", "skip", "dwc", "pwc", "size")
# Name → (searcher, whether it knows the other nets' tables).
ARMS = {
    "warm": ("surrogate", True),
    "cold": ("surrogate", False),
    "genetic": ("genetic", False),
    "random": ("random", False),
    "tpe": ("tpe", False),
}

Table = Mapping[tuple, float]


def tables(path: str) -> tuple[dict[str, Table], dict[str, dict[str, float]]]:
    """Accuracy by configuration, and features, of every net."""
    frame = pyreadr.read_r(path)["df_mfull"]
    found: dict[str, dict[tuple, float]] = {}
    features: dict[str, dict[str, float]] = {}
    for row in frame[frame["precision"] == "8"].to_dict("records"):
        net = str(row["model"])
        found.setdefault(net, {})[tuple(str(row[d]) for d in DECISIONS)] = float(row["accuracy"])
        features[net] = {name: float(row[name]) for name in FEATURES}
    return found, features


def space_of(
    net: str, found: Mapping[str, Table], features: Mapping[str, Any], warm: bool
) -> Space:
    """The configurations of a net, with the results of the other nets where it is warm."""
    values = {d: dict.fromkeys(key[i] for key in found[net]) for i, d in enumerate(DECISIONS)}
    others = [
        Record(features[other], dict(zip(DECISIONS, key, strict=True)), accuracy)
        for other, table in found.items()
        if warm and other != net
        for key, accuracy in table.items()
    ]
    return Space({d: tuple(names) for d, names in values.items()}, features[net], others)


def trials(searcher: str, space: Space, table: Table, seed: int) -> int:
    """How many configurations are measured until the best is among them."""
    asked: list[float] = []

    def objective(configuration: Mapping[str, Any]) -> float:
        asked.append(table[tuple(configuration[d] for d in DECISIONS)])
        return asked[-1]

    method("search", searcher)(space, objective, space.size, seed=seed)
    return 1 + asked.index(max(table.values()))


def main() -> None:
    """Prints the median number of trials by net and searcher, over all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", metavar="FILE", help="df_mfull.Rdata, instead of fetching it")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=ARMS, default=[*ARMS], metavar="SEARCHER")
    add_arguments(parser)
    arguments = parser.parse_args()
    path = arguments.table or str(official(REPOSITORY, COMMIT, "df_mfull.Rdata") / "df_mfull.Rdata")
    found, features = tables(path)
    seeds = range(2 if arguments.quick else arguments.seeds)
    rows = []
    for name in arguments.only:
        searcher, warm = ARMS[name]
        counts = {
            net: [
                trials(searcher, space_of(net, found, features, warm), table, seed)
                for seed in seeds
            ]
            for net, table in found.items()
        }
        everything = [count for each in counts.values() for count in each]
        by_net = {net: median(each) for net, each in counts.items()}
        row = {"searcher": name, **by_net, "median": median(everything)}
        rows.append({**row, "mean": round(mean(everything), 1)})
        print(rows[-1], flush=True)
    title = f"Trials to the best of 48, {len(seeds)} seeds; {REPOSITORY} at {COMMIT[:12]}"
    print_table(title, rows)
    write_json(
        arguments.output, {"benchmark": "side_by_side/quantune", "commit": COMMIT, "rows": rows}
    )


if __name__ == "__main__":
    main()
