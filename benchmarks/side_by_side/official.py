"""Official code of papers, fetched when a benchmark runs and never committed.

A clone is kept in the folder of records. Without a network, BREVITAS_AXE_OFFICIAL names a folder
with clones, bare or not, each in a folder `OWNER+NAME`, with the repository itself in it or in its
folder `repo`.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from records import CACHE


def official(repository: str, commit: str, *parts: str) -> Path:
    """The files of a public repository of GitHub at one commit.

    Args:
        repository: "OWNER/NAME".
        commit: its full name.
        parts: folders or files of it to take; left out, all of it.

    Returns:
        A folder; the same at the next call.
    """
    folder = CACHE / "official" / f"{repository.replace('/', '+')}-{commit[:12]}"
    if folder.is_dir():
        return folder
    archive = _git(_clone(repository), "archive", commit, *parts)
    partial = folder.with_suffix(".partial")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(partial, filter="data")
    partial.rename(folder)
    return folder


def _clone(repository: str) -> Path:
    name = repository.replace("/", "+")
    known = os.environ.get("BREVITAS_AXE_OFFICIAL")
    if known is not None:
        inner = Path(known) / name / "repo"
        return inner if inner.is_dir() else Path(known) / name
    clone = CACHE / "official" / f"{name}.git"
    if not clone.is_dir():
        clone.parent.mkdir(parents=True, exist_ok=True)
        url = f"https://github.com/{repository}"
        subprocess.run(["git", "clone", "-q", "--bare", url, str(clone)], check=True)
    return clone


def _git(clone: Path, *arguments: str) -> bytes:
    # The configuration of whoever runs this may forbid a repository of another owner.
    command = ["git", "-c", "safe.directory=*", "-C", str(clone), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
