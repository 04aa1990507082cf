"""Checksums of a checkpoint: `manifest.json`, the size and CRC-32 of every file of its items.

It is written into the folder before the folder takes its final name, so a whole checkpoint has one.
Orbax alone does not notice bytes that change inside stored float arrays. CRC-32 (of zlib, seconds
for ten gigabytes) guards against such accidents, not against anybody's intent.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FILE_NAME = "manifest.json"
_CHUNK_BYTES = 4 * 2**20
_NUM_THREADS = 4  # zlib lets go of the interpreter's lock


def write(folder: Path, items: Sequence[str]) -> None:
    """Writes the manifest of the files below `folder/ITEM` for every item, whole or not at all."""
    files = sorted(path for item in items for path in (folder / item).rglob("*") if path.is_file())
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        entries = pool.map(_describe, files)
        listed = dict(zip((str(f.relative_to(folder)) for f in files), entries, strict=True))
    text = json.dumps({"algorithm": "crc32", "files": listed}, indent=1)
    partial = folder / (FILE_NAME + ".tmp")
    partial.write_text(text)
    partial.replace(folder / FILE_NAME)


def exists(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file()


def damage(folder: Path, items: Sequence[str], sizes_only: bool = False) -> list[str]:
    """Every file that is not as the manifest says, one line each with what was found.

    folder: of a checkpoint with a manifest; items: which of its items to read; sizes_only: do not
    read the files. Files beyond those of the manifest are no damage.
    """
    try:
        listed = json.loads((folder / FILE_NAME).read_text())["files"]
        expected = {
            folder / name: (entry["bytes"], entry["crc32"])
            for name, entry in listed.items()
            if name.split("/")[0] in items
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{folder / FILE_NAME}: not readable as a manifest ({error})"]
    listed_items = {name.split("/")[0] for name in listed}
    unlisted = [item for item in items if item not in listed_items]
    if unlisted:
        return [f"{folder / FILE_NAME}: lists no file of {', '.join(unlisted)}"]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = pool.map(lambda path: _difference(path, *expected[path], sizes_only), expected)
        return [line for line in found if line]


def _describe(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "crc32": _crc32(path)}


def _difference(path: Path, num_bytes: int, checksum: str, size_only: bool) -> str:
    """What is wrong with the file, "" for nothing."""
    try:
        size = path.stat().st_size
        if size != num_bytes:
            return f"{path}: {size} bytes, needed {num_bytes}"
        if size_only:
            return ""
        found = _crc32(path)
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error})"
    return "" if found == checksum else f"{path}: CRC-32 {found}, needed {checksum}"


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
