"""The output folder of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brevitas_axe.errors import InvalidOption
from brevitas_axe.files import json_text, write_whole
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import Certificate
from brevitas_axe.recipe import Recipe
from brevitas_axe.show.graph import graph_view
from brevitas_axe.show.origin import origin
from brevitas_axe.show.page import page


def open_folder(directory: str | Path) -> Path:
    """Makes the folder, before a long run rather than after it.

    Raises:
        InvalidOption: it cannot be created.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOption(
            f"the output folder {directory} cannot be created: {error.strerror}; "
            "choose another with --output."
        ) from None
    return directory


def write_folder(
    directory: Path,
    summary: Mapping[str, Any],
    certificate: Certificate,
    plan: Plan,
    recipe: Recipe | None = None,
) -> list[Path]:
    """Writes plan.json, recipe.yaml (of a recipe), certificate.json, summary.json and report.html.

    All contents are made before the first file is written, and each file appears whole. The
    summary also gets its origin, and the page the graph of the proven file if that is there.

    Returns:
        The files, in the order in which a person would open them.
    """
    summary = {"origin": origin(), **summary}
    file = directory / Path(certificate.subject).name
    graph = "" if certificate.sha256 is None else graph_view(file, certificate)
    files = {
        directory / "report.html": page(summary, certificate, plan, graph),
        directory / "certificate.json": certificate.to_json(),
        directory / "plan.json": plan.to_json(),
        directory / "summary.json": json_text(summary),
    }
    if recipe is not None:
        files[directory / "recipe.yaml"] = recipe.to_yaml()
    for path, text in files.items():
        write_whole(path, text.encode())
    return list(files)
