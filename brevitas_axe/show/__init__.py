"""What a person reads after a run: a table in the terminal, plots, one HTML page.

Rules of this package: every number shown comes from a summary, a certificate or a plan; no text
has a number written into it. A summary is a JSON object:

    title         one line
    description   one or two sentences about model and data, optional
    accumulator   the requested width P, None where a plan gives widths per layer
    tile          inputs per tile, or None
    arms          list of arms, possibly empty; each has
        name, weight, input, accumulator, tile   bits and tile size, None where float or unlimited
        accuracy        in [0, 1], None when not measured
        proven_width    widest accumulator that the certificate of this arm proves, or None
        overflow_free   True when that certificate proves the accumulator the arm runs on
        kind            "reference", "overflow", "published" or "ours": chooses the colour
        note            one short remark, may be empty
    layers        the solver's log: list of {name, error_rounded, error, budget_used, …}
    history       of a training: list of {epoch, loss, score, …}
    resources     list of {name, accumulator, lut, unlimited_accumulator, unlimited_lut}, see
                  `brevitas_axe.methods.cost.resource_rows`
    seconds       run time
    validation    model → {function, unquantized, unlimited, limited}, see
                  `brevitas_axe.run.validated`
    origin        date, command and versions; `write_folder` adds it
    environment   name → version or seed

Only `title` is needed; what is absent is left out of the page.
"""

from brevitas_axe.show.allocation import layer_bits, pareto_front, write_allocation
from brevitas_axe.show.folder import open_folder, write_folder
from brevitas_axe.show.page import write_page
from brevitas_axe.show.tables import arms_markdown, arms_table

__all__ = [
    "arms_markdown",
    "arms_table",
    "layer_bits",
    "open_folder",
    "pareto_front",
    "write_allocation",
    "write_folder",
    "write_page",
]
