"""Results of a proof: one `DotProduct` per accumulator, one `Certificate` per model or file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from brevitas_axe.accumulator import accumulator_limit, check_bit_width, tile_starts
from brevitas_axe.display import cell, html_table, one_line
from brevitas_axe.errors import InvalidOption, InvalidState, NotProven
from brevitas_axe.files import read_text, write_whole
from brevitas_axe.plan import OF_TYPE, Plan, name_matches

_FORMAT = "brevitas_axe.certificate.v1"
_NUMBERS = ("min", "max", "bits", "outer", "+bias", "target")
# Names in a line of text; of the others only the number is said.
_MOST_NAMES = 8
# "type:Conv2d" is Brevitas's QuantConv2d too.
_QUANTIZED = "Quant"
_HEADINGS = ("dot product", "K", "tile", "weights", "inputs", *_NUMBERS, "verdict")


@dataclass(frozen=True)
class DotProduct:
    """The proof of one dot product, or the reason why there is none.

    Sums are in units of weight scale × input scale: the integers in the accumulator.

    Attributes:
        name: node name (file) or module name (live model), unique in the certificate.
        op: operator or module type.
        layer: module name, as in a Plan; None when it cannot be found from the file.
        weight: name of the weight initializer or parameter.
        shape: shape of the weights.
        inputs: length K of the dot product.
        tile_size: inputs per tile T; None means one accumulator for the whole row.
        weight_type: qonnx DataType of the weights.
        input_type: qonnx DataType of the other operand.
        input_range: integers of the other operand, zero point subtracted, zero included.
        minimum: smallest worst-case sum of any tile.
        maximum: largest worst-case sum of any tile.
        width: bits of the inner accumulator, proven sufficient.
        outer_width: bits of the accumulator that adds the tiles, proven sufficient from the
            actual tile sums; None without tiles.
        outer_bound: ⌈P_I + log2(K/T)⌉ of the target (or of `width`); None without tiles.
        width_with_bias: bits when the bias goes through the (outer) accumulator too; None when
            there is no usable bias.
        target: requested bits.
        proven: True when the sums above are a proof.
        reason: why not, empty when proven.
        assumptions: what the proof takes from the file or model without checking it, one sentence
            each.
    """

    name: str
    op: str
    layer: str | None = None
    weight: str | None = None
    shape: tuple[int, ...] | None = None
    inputs: int | None = None
    tile_size: int | None = None
    weight_type: str | None = None
    input_type: str | None = None
    input_range: tuple[int, int] | None = None
    minimum: int | None = None
    maximum: int | None = None
    width: int | None = None
    outer_width: int | None = None
    outer_bound: int | None = None
    width_with_bias: int | None = None
    target: int | None = None
    proven: bool = False
    reason: str = ""
    assumptions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"DotProduct({one_line(self.layer or self.name)}: {one_line(self.verdict)})"

    @property
    def fits(self) -> bool:
        """Proven, and within the target if there is one."""
        if not self.proven or self.width is None:
            return False
        return self.target is None or self.width <= self.target

    @property
    def margin_bits(self) -> int | None:
        """Target minus needed bits, negative where the target is too narrow."""
        return None if self.width is None or self.target is None else self.target - self.width

    @property
    def margin_units(self) -> int | None:
        """Distance of the worst-case sum from ±(2^(P-1) - 1), negative when it overflows."""
        if self.minimum is None or self.maximum is None or self.target is None:
            return None
        return accumulator_limit(self.target) - max(-self.minimum, self.maximum)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Names by which a plan or an exclusion may refer to this entry."""
        return tuple(dict.fromkeys(n for n in (self.layer, self.name, self.weight) if n))

    @property
    def verdict(self) -> str:
        """The result in one clause."""
        if not self.proven:
            return f"not proven: {self.reason}"
        if not self.fits:
            return f"overflows: needs {self.width} bits, target {self.target}"
        return f"fits in {self.width} bits"


@dataclass(frozen=True)
class Certificate:
    """The overflow certificate of one model.

    Attributes:
        entries: one per dot product, in execution order.
        excluded: names of entries that the caller took out of the verdict.
        subject: what was certified: a file name, or the class of a live model.
        sha256: of the ONNX file; None for a live model.
        external: (location, sha256) of every external data file that was read.
        tool_version: of brevitas_axe.
        sums: one entry per Add that joins results of equal step: the integers and the bits of the
            sum. They have no target of their own, and no part in the verdict.
        assumptions: what is assumed of the whole model or file, one sentence each.
    """

    entries: tuple[DotProduct, ...]
    excluded: tuple[str, ...] = ()
    subject: str = ""
    sha256: str | None = None
    external: tuple[tuple[str, str], ...] = ()
    tool_version: str = ""
    sums: tuple[DotProduct, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        count = f"{len(self.judged)} dot product{'s' * (len(self.judged) != 1)}"
        widest = max((e.width for e in self.judged if e.width is not None), default=None)
        parts = [f"{one_line(self.subject)}: {self._word}", *([] if self.unclaimed else [count])]
        if widest is not None:
            parts.append(f"widest accumulator {widest} bits")
        if self.failures:
            parts.append(f"{len(self.failures)} of them fail, first {self.failures[0]!r}")
        return f"Certificate({', '.join(parts)})"

    def _repr_html_(self) -> str:
        return html_table(
            repr(self), _HEADINGS, (self._cells(e) for e in (*self.entries, *self.sums))
        )

    @property
    def _word(self) -> str:
        """The verdict, which says so where it is about some of the dot products only."""
        word = "proven" if self.ok else "NOT proven"
        if not self.unclaimed:
            return word
        judged = f"{len(self.judged)} of {len(self.entries)} dot products"
        return f"{word} for {judged}" if self.ok else f"{word}, {judged} judged"

    @property
    def judged(self) -> tuple[DotProduct, ...]:
        """Entries that are not excluded."""
        return tuple(e for e in self.entries if e.name not in self.excluded)

    @property
    def unclaimed(self) -> tuple[str, ...]:
        """Layers, or names, of the dot products that the verdict leaves out."""
        return tuple(e.layer or e.name for e in self.entries if e.name in self.excluded)

    @property
    def unlimited(self) -> tuple[str, ...]:
        """Entries without a requested width, where others have one."""
        if all(entry.target is None for entry in self.judged):
            return ()
        return tuple(e.layer or e.name for e in self.judged if e.target is None)

    @property
    def ok(self) -> bool:
        """True when there is an entry, and all are proven and within their targets."""
        return bool(self.judged) and all(entry.fits for entry in self.judged)

    @property
    def failures(self) -> tuple[DotProduct, ...]:
        """Entries that are not proven or too wide."""
        return tuple(entry for entry in self.judged if not entry.fits)

    def require(self) -> Certificate:
        """Returns itself, or raises NotProven in one sentence when `ok` is False."""
        if self.ok:
            return self
        if not self.judged:
            raise NotProven(f"{self.subject}: there is no dot product to certify.")
        first, more = self.failures[0], len(self.failures) - 1
        raise NotProven(
            f"{self.subject}: '{first.name}' {first.verdict}"
            + (f" (and {more} more)." if more else ".")
        )

    def assuming(self, assumptions: Iterable[str]) -> Certificate:
        """The same certificate, which names these assumptions too."""
        return replace(self, assumptions=tuple(dict.fromkeys((*self.assumptions, *assumptions))))

    def judging(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Certificate:
        """The same proof with a verdict on chosen dot products; what it leaves out stays named.

        Args:
            include: names of layers, nodes or weights, patterns of them (see
                `brevitas_axe.plan.name_matches`), or "type:" and an operator or a layer's class, of
                which alone something is claimed; empty for all.
            exclude: in the same way, of which nothing is claimed.

        Raises:
            InvalidOption: one of them matches no dot product.
            InvalidPlan: a regular expression cannot be compiled.
        """
        left_out = {*self.excluded, *excluded_names(self.entries, exclude)}
        if include:
            claimed = excluded_names(self.entries, include, "include")
            left_out |= {e.name for e in self.entries if e.name not in claimed}
        return replace(self, excluded=tuple(e.name for e in self.entries if e.name in left_out))

    def to_json(self) -> str:
        """Strict JSON, the same bytes for the same certificate."""
        entries = [
            {**asdict(e), "fits": e.fits, "excluded": e.name in self.excluded} for e in self.entries
        ]
        data = {**asdict(self), "entries": entries, "ok": self.ok, "format": _FORMAT}
        data["unlimited"], data["unclaimed"] = self.unlimited, self.unclaimed
        return json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes the JSON file, whole or not at all."""
        write_whole(path, self.to_json().encode())

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Parses what `to_json` wrote.

        Raises:
            InvalidState: anything else.
        """
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT:
                raise ValueError(f"its format is {data['format']!r}, expected {_FORMAT!r}")
            names = {f.name for f in fields(cls)}
            content = {key: _tuples(value) for key, value in data.items() if key in names}
            for key in ("entries", "sums"):
                content[key] = tuple(DotProduct(**_known(entry)) for entry in data[key])
            return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidState(
                f"the certificate is none that this version reads: {error}."
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Reads a JSON file."""
        return cls.from_json(read_text(path, "certificate", InvalidState))

    def table(self) -> Table:
        """A rich table, one row per dot product."""
        table = Table(title=Text(f"{self.subject}: {self._word}"))
        for heading in _HEADINGS:
            table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
        for entry in (*self.entries, *self.sums):
            # Text, not str: a name from a file must not be read as rich markup.
            table.add_row(*(Text(cell(value)) for value in self._cells(entry)))
        notes = []
        if self.unlimited:
            notes.append(f"No width was requested: {', '.join(self.unlimited)}.")
        if self.unclaimed:
            more = len(self.unclaimed) - _MOST_NAMES
            named = ", ".join(map(one_line, self.unclaimed[:_MOST_NAMES]))
            notes.append(f"Nothing is claimed of {named}{f' and {more} more' * (more > 0)}.")
        if self.assumptions:
            notes.append(f"Assumed: {'; '.join(self.assumptions)}.")
        table.caption = Text("\n".join(notes)) if notes else None
        return table

    def _cells(self, e: DotProduct) -> tuple[object, ...]:
        """One row of a table, as `_HEADINGS` says."""
        names = (e.layer or e.name, e.inputs, e.tile_size, e.weight_type, e.input_type)
        sums = (e.minimum, e.maximum, e.width, e.outer_width, e.width_with_bias, e.target)
        return (*names, *sums, "excluded" if e.name in self.excluded else e.verdict)


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _known(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dot product, without what `to_json` adds to them."""
    names = {f.name for f in fields(DotProduct)}
    return {key: _tuples(value) for key, value in entry.items() if key in names}


@dataclass(frozen=True)
class Targets:
    """Requested widths: a plan by layer, and one width and tile size for everything else."""

    accumulator_bit_width: int | None = None
    tile_size: int | None = None
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if self.accumulator_bit_width is not None:
            check_bit_width(self.accumulator_bit_width)
        tile_starts(1, self.tile_size)

    def of(self, aliases: Sequence[str]) -> tuple[int | None, int | None]:
        """(accumulator width, tile size) for the entry with these names."""
        width, tile = self.accumulator_bit_width, self.tile_size
        for alias in aliases:
            if self.plan is not None and alias in self.plan.layers:
                planned = self.plan[alias]
                # None in a plan means the width for everything else.
                return planned.accumulator or width, planned.tile or tile
        return width, tile

    def check_aliases(self, aliases: Sequence[Sequence[str]]) -> None:
        """Raises InvalidPlan when the plan names something that is not there.

        Args:
            aliases: the names of each dot product; the first one is shown.
        """
        known = {name for names in aliases for name in names}
        if self.plan is not None and not set(self.plan.layers) <= known:
            self.plan.check_names(dict.fromkeys(names[0] for names in aliases))


def excluded_names(
    entries: Sequence[DotProduct], exclude: Sequence[str], option: str = "exclude"
) -> tuple[str, ...]:
    """Names of the entries that patterns refer to, see `Certificate.judging`.

    Args:
        entries: of a certificate.
        exclude: the patterns; a name in full is meant as such, whatever signs are in it.
        option: what the caller calls them.

    Raises:
        InvalidOption: a pattern refers to nothing.
    """
    found: set[str] = set()
    for pattern in (exclude,) if isinstance(exclude, str) else exclude:
        meant = {e.name for e in entries if pattern in e.aliases}
        meant = meant or {e.name for e in entries if _meant(pattern, e)}
        if not meant:
            kinds = pattern.startswith(OF_TYPE)
            known = dict.fromkeys(OF_TYPE + e.op if kinds else e.aliases[0] for e in entries)
            raise InvalidOption(
                f"{option} names '{pattern}', which is no dot product here; they are: "
                f"{', '.join(known) or 'none'}."
            )
        found |= meant
    return tuple(e.name for e in entries if e.name in found)


def _meant(pattern: str, entry: DotProduct) -> bool:
    if pattern.startswith(OF_TYPE):
        kind = pattern.removeprefix(OF_TYPE)
        return entry.op in (kind, f"{_QUANTIZED}{kind}")
    return any(name_matches(pattern, alias) for alias in entry.aliases)


def tool_version() -> str:
    """Installed version of brevitas_axe."""
    try:
        return metadata.version("brevitas-axe")
    except metadata.PackageNotFoundError:
        return "unknown"
