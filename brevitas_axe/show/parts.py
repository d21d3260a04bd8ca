"""Parts of which every page is made: the document, tables, drawings, cells; all text is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from brevitas_axe.plan import LayerPrecision
from brevitas_axe.show import plots
from brevitas_axe.show.style import CSS
from brevitas_axe.show.tables import bits


def document(title: str, body: Iterable[str]) -> str:
    """A whole page of HTML parts under a heading; empty parts are left out."""
    title = escape(title)
    body = [f"<h1>{title}</h1>", *body]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def table(
    headings: Sequence[str],
    rows: Iterable[tuple[Sequence[str], str]],
    numbers: Iterable[int],
) -> str:
    """A table from (cells as HTML, row class) pairs; `numbers` are right-aligned columns."""
    right = set(numbers)

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if index in right else ''}>{value}</{tag}>"
            for index, value in enumerate(values)
        )

    body = "\n".join(
        f"<tr{f' class={kind}' if kind else ''}>{cells('td', values)}</tr>" for values, kind in rows
    )
    head = cells("th", [escape(heading) for heading in headings])
    return (
        f'<div class="card"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def drawing(draw: Callable[[float], Figure], description: str) -> str:
    """A figure as inline SVG, in a width for screens and one for phones.

    Args:
        draw: makes the figure of a width in inches.
        description: for screen readers.
    """
    return "\n".join(
        f'<div class="card plot {kind}">'
        + plots.svg(draw(width)).replace(
            "<svg", f'<svg role="img" aria-label="{escape(description)}"', 1
        )
        + "</div>"
        for kind, width in (("wide", plots.WIDE), ("narrow", plots.NARROW))
    )


def how_to_read(terms: Iterable[tuple[str, str]]) -> str:
    """A glossary at the end of a page, from (term, sentences) pairs."""
    items = "".join(f"<dt>{escape(t)}</dt><dd>{escape(d)}</dd>" for t, d in terms)
    return f"<h2>How to read this page</h2>\n<dl>{items}</dl>"


def badge(text: str, good: bool) -> str:
    return f'<span class="badge {"good" if good else "bad"}">{escape(text)}</span>'


def paragraph(text: object) -> str:
    """A remark; none where there is no text."""
    return f'<p class="soft">{escape(str(text))}</p>' if text else ""


def origin_line(text: str) -> str:
    """A remark that ends in a command, whose options are not broken behind their hyphens."""
    words = (escape(word) for word in text.split(" "))
    shown = (f'<span class="option">{w}</span>' if w.startswith("-") else w for w in words)
    return f'<p class="soft">{" ".join(shown)}</p>' if text else ""


def sentence(text: str) -> str:
    """A cell whose text may take several lines, but no narrow ones."""
    return f'<div class="sentence">{escape(text)}</div>' if text else ""


def cell(value: object) -> str:
    return "–" if value is None else escape(str(value))


def name_cell(name: str) -> str:
    """A cell with the name of a layer, which may be broken behind its dots where it is long."""
    return f'<span class="name">{escape(name).replace(".", ".<wbr>")}</span>'


def width_cells(name: str, precision: LayerPrecision) -> list[str]:
    """Cells of one layer of a plan: name, weight, input and accumulator bits, tile."""
    return [
        name_cell(name),
        bits(precision.weight, "as it is"),
        bits(precision.input, "as it is"),
        bits(precision.accumulator, "unlimited"),
        bits(precision.tile, "–"),
    ]


def significant(value: object) -> str:
    """A cell with three digits of a number."""
    return f"{value:.3g}" if isinstance(value, float) else cell(value)
