"""A folder that appears whole or not at all, and whose files are checked when they are read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from brevitas_axe.errors import InvalidOption, InvalidState
from brevitas_axe.files import json_text

MANIFEST = "manifest.json"
# A command's output folder has the saved model inside, beside its report.
INSIDE = "model"
_FORMAT = "brevitas_axe.saved.v1"
_PACKAGES = ("brevitas_axe", "brevitas", "torch", "transformers")
_CHUNK = 2**24


def check_place(folder: str | Path) -> Path:
    """Refuses, before any work, a folder into which nothing can be saved.

    Raises:
        InvalidOption: it is a file, holds other files, or cannot be made.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InvalidOption(f"{folder} is a file; name a folder, new or empty.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise InvalidOption(
            f"the folder {folder} holds other files; name a new or empty one, or one that save "
            "wrote."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}."):
            pass
    except OSError as error:
        raise InvalidOption(f"{folder} cannot be written: {error.strerror or error}.") from None
    return folder


@contextmanager
def written(folder: Path, kind: str) -> Iterator[Path]:
    """A temporary folder for the files, which becomes the folder at the end, with a manifest.

    Args:
        folder: its place; what `save` wrote there before is replaced.
        kind: of result, for the manifest.
    """
    check_place(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        content = {"format": _FORMAT, "kind": kind, "versions": versions(_PACKAGES), "files": files}
        (temporary / MANIFEST).write_text(json_text(content))
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o777 & ~mask)  # mkdtemp makes private folders
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        before = _before(folder)
        shutil.rmtree(before, ignore_errors=True)
        if (folder / MANIFEST).is_file():
            os.replace(folder, before)
        os.replace(temporary, folder)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def found(folder: str | Path) -> Path:
    """The folder of a saved model: the one that is named, or the one inside it.

    Raises:
        InvalidState: there is none.
    """
    for place in (Path(folder), Path(folder) / INSIDE):
        if not place.exists() and (_before(place) / MANIFEST).is_file():
            os.replace(_before(place), place)  # the process ended while it was replaced
        if (place / MANIFEST).is_file():
            return place
    raise InvalidState(f"{folder} is no folder that brevitas_axe.save wrote: it has no {MANIFEST}.")


def is_saved(folder: str | Path) -> bool:
    """Whether `found` finds a saved model."""
    try:
        found(folder)
    except InvalidState:
        return False
    return True


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest, whose files are all there and as they were written.

    Raises:
        InvalidState: a file is missing, changed, or of another format.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        form, files, kind = content["format"], dict(content["files"]), content["kind"]
        named = isinstance(kind, str) and all(Path(name).name == name for name in files)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidState(f"{folder / MANIFEST} is corrupted ({error}); save again.") from None
    if form != _FORMAT or not named:
        raise InvalidState(
            f"{folder / MANIFEST} has the format {form!r}, and this version reads {_FORMAT!r}."
        )
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or _digest(path) != digest:
            what = "is corrupted" if path.is_file() else "is missing"
            raise InvalidState(f"the saved file {path} {what}; save the model again.")
    return content


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder; raises InvalidState where there is none."""
    try:
        content = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidState(f"the saved file {folder / name} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise InvalidState(f"the saved file {folder / name} holds no JSON object.")
    return content


def _before(folder: Path) -> Path:
    """Where the previous content waits while a folder is replaced."""
    return folder.parent / f".{folder.name}.before"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions by package, of those that are installed."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
