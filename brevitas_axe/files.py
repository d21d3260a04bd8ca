"""Files appear whole or not at all, records of a run line by line, and strict YAML."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from brevitas_axe.errors import AxeError, InvalidPlan, InvalidState, NotEnoughDisk


def json_text(content: Any) -> str:
    """Indented JSON; NaN and infinity, which JSON lacks, become null."""
    strict = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return json.dumps(strict, indent=2, allow_nan=False) + "\n"


def write_whole(path: str | Path, data: bytes) -> None:
    """Writes data to path through a temporary file in the same folder and an atomic rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; this one gets the permissions of an ordinary open().
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_room(folder: str | Path, needed_bytes: int) -> None:
    """Refuses, before any work, a folder on whose file system there is too little room.

    Args:
        folder: what will be written goes here; it need not exist yet.
        needed_bytes: how much that will be.

    Raises:
        NotEnoughDisk: less is free.
    """
    place = Path(folder).absolute()
    there = next((each for each in (place, *place.parents) if each.exists()), None)
    if there is None:  # a drive that is not there, which writing will tell
        return
    try:
        free = shutil.disk_usage(there).free
    except OSError:  # nobody says how much is free
        return
    if needed_bytes > free:
        raise NotEnoughDisk(
            f"the folder {folder} needs about {_mebibytes(needed_bytes)}, and on its file system "
            f"{_mebibytes(free)} are free; make room there, or name a folder on another one."
        )


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:,.1f} MiB"


def read_text(path: str | Path, what: str, refusal: type[AxeError] = InvalidPlan) -> str:
    """Text of a file; an error of class `refusal` where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise refusal(f"the {what} {path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise refusal(f"the {what} {path} cannot be read: {error}.") from None


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


def parse_object(
    text: str, what: str, form: str, keys: Iterable[str], older: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A JSON object with exactly the given keys besides 'format', whose value must be `form`.

    Args:
        text: JSON.
        what: kind of file, for messages: "plan".
        form: expected value of 'format'.
        keys: the other keys.
        older: values of 'format' that are read as well.

    Raises:
        InvalidPlan: anything else, duplicate keys included.
    """
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidPlan(f"the {what} is not valid JSON: {error}.") from None
    keys = ["format", *keys]
    if not isinstance(data, dict) or set(data) != set(keys):
        listed = ", ".join(f"'{key}'" for key in keys)
        raise InvalidPlan(f"a {what} is a JSON object with exactly the keys {listed}.")
    if data["format"] not in (form, *older):
        raise InvalidPlan(f"the {what}'s format is {data['format']!r}, expected {form!r}.")
    return data


class Journal:
    """Records of a long run in a file, one line of JSON with a checksum for each.

    A run that was killed while it wrote a record has lost that one alone.

    Args:
        path: the file, made with the first record.
        what: the records are, for messages: "trials".

    Attributes:
        records: lists of plain values, in the order in which they were added.

    Raises:
        InvalidState: a line is not as it was written.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self.records: list[list[Any]] = []
        if path.exists():
            self._read(what)

    def add(self, *record: Any) -> None:
        """Writes one record, of values that JSON has, NaN and infinity among them."""
        self.records.append([*record])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([*record, _checksum(record)]) + "\n")

    def _read(self, what: str) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            for line in whole.decode().splitlines():
                *record, digest = json.loads(line)
                if digest != _checksum(record):
                    raise ValueError(f"the record of '{record[0]}' has another checksum")
                self.records.append(record)
        except (ValueError, TypeError, IndexError) as error:
            raise InvalidState(
                f"the file of {what} {self._path} is corrupted ({error}); delete it to run them "
                "again."
            ) from None
        if whole != content:
            # The run was killed while it wrote the last line: that record is dropped.
            with self._path.open("r+b") as file:
                file.truncate(len(whole))


def _checksum(record: Iterable[Any]) -> str:
    """Detects changed numbers."""
    return hashlib.sha256(json.dumps([*record]).encode()).hexdigest()[:32]


class StrictLoader(yaml.SafeLoader):
    """YAML's plain types, no key twice."""


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if any(not isinstance(key, str) for key in keys):
        raise ValueError("a key is no text; write it in quotes")
    if len(set(keys)) < len(keys):
        raise ValueError("a key appears twice in one mapping")
    return {k: loader.construct_object(v, deep=True) for k, (_, v) in zip(keys, node.value)}  # noqa: B905


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
