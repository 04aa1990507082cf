"""Decides whether a checkpoint can be trusted: by its parts, its checksums and its record.

`manifest.json` holds the size and CRC-32 of every file of a checkpoint's items. It is written into
the folder before the folder takes its final name, so a whole checkpoint has one. Orbax alone does
not notice bytes that change inside stored float arrays. CRC-32 (of zlib, seconds for ten gigabytes)
guards against such accidents, not against intent.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from escherjax.errors import UNREADABLE

WEIGHTS, OPTIMIZER, RECORD = ITEMS = ("weights", "optimizer", "record")  # folders of a checkpoint
UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax puts it behind the step until the checkpoint is whole
MANIFEST = "manifest.json"
_CHUNK_BYTES = 4 * 2**20
_NUM_THREADS = 4  # zlib releases the interpreter's lock


def step_of(name: str) -> int | None:
    """The step of a checkpoint whose folder has this name; None for any other name, "006" too,
    since a step has one name."""
    return int(name) if re.fullmatch("0|[1-9][0-9]*", name) else None


def steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints of a work directory, rising; a folder takes that name when whole."""
    folders = [path for path in (workdir / "checkpoints").glob("*") if path.is_dir()]
    return sorted(step for f in folders if (step := step_of(f.name)) is not None)


def newest_whole(workdir: Path) -> int | None:
    """The newest step of a work directory whose checkpoint has no problems, None for none."""
    for step in reversed(steps(workdir)):
        if not find_problems(workdir / "checkpoints" / str(step)):
            return step
    return None


def find_problems(
    folder: Path, items: Sequence[str] = ITEMS, sizes_only: bool = False
) -> list[str]:
    """Problems of a checkpoint, one line each; an empty list if it can be used.

    Looked for are missing items and files, sizes and checksums that differ from the manifest, and
    (with RECORD among the items) a record of another step than the folder's name.

    Args:
        folder: a checkpoint, also one that was renamed STEP.damaged.
        items: the parts of it to check; nothing else of it is read.
        sizes_only: compare sizes and do not read the bytes.
    """
    missing = [f"{folder / item}: missing" for item in items if not (folder / item).is_dir()]
    if missing and (folder / "state").is_dir():
        return [
            f"{folder}: saved by an older version, whose layout this one does not read; use that "
            "version to export it"
        ]
    if not has_manifest(folder):
        missing.append(f"{folder / MANIFEST}: missing, and no whole checkpoint lacks it")
    if missing:
        return missing
    problems = _damage(folder, items, sizes_only=True)
    if not problems and RECORD in items:
        problems = _other_step(folder)
    return problems or ([] if sizes_only else _damage(folder, items))


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON record of a checkpoint. Raises OSError or ValueError if it is damaged."""
    try:
        record = json.loads((folder / RECORD / "metadata").read_text())
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"not readable as a record ({error})") from None
    if not isinstance(record, dict) or not {"step", "config"} <= record.keys():
        raise ValueError("it has no step or no config")
    return record


def has_manifest(folder: Path) -> bool:
    """Whether a folder holds a manifest, as every whole checkpoint does."""
    return (folder / MANIFEST).is_file()


def write_manifest(folder: Path) -> None:
    """Writes the manifest of all items of a checkpoint, whole or not at all."""
    files = sorted(path for item in ITEMS for path in (folder / item).rglob("*") if path.is_file())
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        entries = pool.map(
            lambda path: {"bytes": path.stat().st_size, "crc32": _crc32(path)}, files
        )
        listed = dict(zip((str(f.relative_to(folder)) for f in files), entries, strict=True))
    text = json.dumps({"algorithm": "crc32", "files": listed}, indent=1)
    partial = folder / (MANIFEST + ".tmp")
    partial.write_text(text)
    partial.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """{file below the checkpoint: {"bytes", "crc32"}}, as the manifest has it."""
    return json.loads((folder / MANIFEST).read_text())["files"]


def _damage(folder: Path, items: Sequence[str], sizes_only: bool = False) -> list[str]:
    """Every file that is not as the manifest has it; files beyond those listed are no damage."""
    try:
        listed = read_manifest(folder)
        expected = {
            folder / name: (entry["bytes"], entry["crc32"])
            for name, entry in listed.items()
            if name.split("/")[0] in items
        }
    except UNREADABLE as error:
        return [f"{folder / MANIFEST}: not readable as a manifest ({error})"]
    listed_items = {name.split("/")[0] for name in listed}
    unlisted = [item for item in items if item not in listed_items]
    if unlisted:
        return [f"{folder / MANIFEST}: lists no file of {', '.join(unlisted)}"]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = pool.map(lambda path: _difference(path, *expected[path], sizes_only), expected)
        return [line for line in found if line]


def _difference(path: Path, num_bytes: int, checksum: str, size_only: bool) -> str:
    """What is wrong with the file, "" for nothing."""
    try:
        size = path.stat().st_size
        if size != num_bytes:
            return f"{path}: {size} bytes, expected {num_bytes}"
        if size_only:
            return ""
        found = _crc32(path)
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error})"
    return "" if found == checksum else f"{path}: CRC-32 {found}, expected {checksum}"


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _other_step(folder: Path) -> list[str]:
    """A problem if the record is of another step than the folder's name (set aside or not)."""
    try:
        found = read_record(folder)["step"]
    except (OSError, ValueError) as error:
        return [f"{folder / RECORD}: {error}"]
    if found == step_of(folder.name.split(".")[0]):
        return []
    return [f"{folder}: its record is of step {found}, so it was renamed; rename it to that step"]
