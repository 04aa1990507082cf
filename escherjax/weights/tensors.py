"""The tensors in a file of weights, one at a time: safetensors, shards with an index, pickles.

Listing reads and checks headers only; values are read when asked for, so that no more than one
tensor is in memory beside what the caller keeps. The safetensors format:
https://github.com/huggingface/safetensors, "Format". Its header is checked here and not by the
library, which stops at the first fault, lets the later of two equal names win, maps whole files
into memory and has no bfloat16 for numpy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np

from escherjax.weights import pickles, strict_json
from escherjax.weights.strict_json import shown

# Types that are read; float32 holds all their values.
NUMPY_TYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Bytes of an element; types of less than a byte are left out, and their sizes not checked.
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_MAX_AXES = 8
_MAX_FILE_NAME = 255  # bytes; file systems take no longer ones
_LENGTH_BYTES = 8  # the header's length, little endian, stands before it


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. dtype: in the words of safetensors, "F32", "F16", "BF16", "I64", ...

    read: its values [*shape] in that type; raises OSError where the file has changed meanwhile. It
    works for the types in `NUMPY_TYPES`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Path
    read: Callable[[], np.ndarray]


def list_tensors(path: Path, problems: list[str]) -> list[StoredTensor] | None:
    """Every tensor of `path`: .safetensors, .bin or .pth, or the .json index of shards.

    None where anything is wrong with the files themselves; all of it is added to `problems`.
    """
    kinds = {".json": _list_shards, ".bin": _list_pickle, ".pth": _list_pickle}
    listing = kinds.get(path.suffix, _list_safetensors)
    found: list[str] = []
    tensors = listing(path, found)
    problems += found
    return None if found else tensors


def _list_safetensors(path: Path, problems: list[str]) -> list[StoredTensor]:
    try:
        header, start, end = _read_header(path)
    except (OSError, ValueError) as error:
        problems.append(f"{path}: is not a whole safetensors file ({error})")
        return []
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        problems.append(f"{path}: __metadata__ in its header is no table of texts")
    found = []
    spans = []
    for name, entry in header.items():
        fault = _entry_fault(entry)
        if fault:
            problems.append(f"{path}: tensor {shown(name)} {fault}")
            continue
        begin, stop = entry["data_offsets"]
        spans.append((begin, stop, name))
        reader = _Slice(path, start + begin, entry["dtype"], tuple(entry["shape"]))
        found.append(StoredTensor(name, entry["dtype"], reader.shape, path, reader.read))
    if not problems:
        problems += [f"{path}: {fault}" for fault in _span_faults(spans, end - start)]
    return found


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """(header, first byte of the data, size of the file); ValueError with the reason."""
    size = path.stat().st_size
    with path.open("rb") as file:
        opening = file.read(_LENGTH_BYTES)
        length = int.from_bytes(opening, "little")
        first = file.read(1)
        file.seek(_LENGTH_BYTES)
        if len(opening) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise ValueError(_why_no_header(opening, first, size))
        if length > strict_json.MAX_BYTES:
            raise ValueError(f"its header would be {length} bytes long")
        content = file.read(length)
    try:
        return strict_json.parse_object(content), _LENGTH_BYTES + length, size
    except ValueError as error:
        raise ValueError(f"its header is damaged: {error}") from None


def _why_no_header(opening: bytes, first: bytes, size: int) -> str:
    """What the file may be, given 8 bytes that are no length of a header, and the one after."""
    if first == b"{":  # a header begins; its length may well look like the mark of a pickle
        return f"its {size} bytes end before the header does"
    if opening.startswith((b"PK\x03\x04", b"\x80")):
        return "it is a pickle under another name; those are opened as .bin or .pth only"
    if opening == b"version ":
        return "it is a Git LFS pointer in place of the file; run: git lfs pull"
    return f"its {size} bytes end before the header does"


def _entry_fault(entry: Any) -> str | None:
    """What is wrong with a tensor's entry in the header by itself; None if nothing is."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "has no entry of dtype, shape and data_offsets in the header"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        return f"has the type {shown(dtype)}"
    if not _are_counts(shape) or len(shape) > _MAX_AXES:
        return f"has the shape {shown(shape)}; needed up to {_MAX_AXES} non-negative integers"
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"has the data_offsets {shown(offsets)}; needed its first byte and its end"
    if dtype in _ITEM_BYTES:
        needed = math.prod(shape) * _ITEM_BYTES[dtype]
        if needed != offsets[1] - offsets[0]:
            return f"has {offsets[1] - offsets[0]} bytes; {dtype} {shape} needs {needed}"
    return None


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )


def _span_faults(spans: list[tuple[int, int, str]], size: int) -> list[str]:
    """Data that overlap, leave gaps, or do not end where the file does."""
    faults = []
    reached = 0
    for begin, stop, name in sorted(spans):
        if begin != reached:
            what = "overlaps the tensor before it" if begin < reached else "follows a gap"
            faults.append(f"tensor {shown(name)} {what} (byte {begin} of the data, not {reached})")
        reached = max(reached, stop)
    if reached != size:
        faults.append(
            f"is not a whole safetensors file (its tensors end at byte {reached} of the data, "
            f"which is {size} bytes long)"
        )
    return faults


@dataclasses.dataclass(frozen=True)
class _Slice:
    """Where the values of a tensor stand in a file."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        count = math.prod(self.shape)
        # Not a memory map: its pages would count as memory for as long as the file is mapped.
        flat = np.fromfile(self.path, NUMPY_TYPES[self.dtype], count, offset=self.offset)
        if len(flat) != count:
            raise OSError(f"{self.path} was cut short while it was read")
        return flat.reshape(self.shape)


def _list_shards(path: Path, problems: list[str]) -> list[StoredTensor]:
    index = strict_json.read_object(path, problems)
    if index is None:
        return []
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files:
        problems.append(f"{path}: weight_map is missing; needed tensor names -> files beside it")
        return []
    weight_map = {n: file if isinstance(file, str) else ascii(file) for n, file in files.items()}
    found: dict[str, StoredTensor] = {}
    shards = {}
    for file_name in sorted(set(weight_map.values())):
        shard = _shard_path(path, file_name, problems)
        tensors = None if shard is None else list_tensors(shard, problems)
        if tensors is not None:
            shards[file_name] = tensors
    for file_name, tensors in shards.items():
        for tensor in tensors:
            listed = weight_map.get(tensor.name)
            where = f"{tensor.source}: tensor {shown(tensor.name)}"
            if tensor.name in found:
                problems.append(f"{where} is also in {found[tensor.name].source.name}")
            elif listed != file_name:
                listing = "does not list it" if listed is None else f"says {shown(listed)}"
                problems.append(f"{where} is stored here, but {path.name} {listing}")
            found[tensor.name] = tensor
    for name, file_name in weight_map.items():
        if file_name in shards and name not in found:
            problems.append(f"{path}: tensor {shown(name)} is not in {file_name}, as it says")
    return list(found.values())


def _shard_path(index: Path, file_name: str, problems: list[str]) -> Path | None:
    """The shard that an index names; only files of the index's kind in its own folder are taken."""
    kind = ".bin" if ".bin." in index.name else ".safetensors"
    folder = index.parent
    path = folder / file_name
    plain = (
        PureWindowsPath(file_name).name == file_name  # which knows both slashes and drives
        and file_name.isprintable()
        and len(file_name.encode()) <= _MAX_FILE_NAME
    )
    if not plain or not file_name.endswith(kind):
        fault = f"names {shown(file_name)}; needed a {kind} file in its own folder"
    elif not path.is_file():
        fault = f"names {file_name}, which is missing or no file"
    elif path.resolve().parent not in (folder.resolve(), *_hub_blobs(folder.absolute())):
        fault = f"names {file_name}, a link out of the folder; copy the file itself here"
    else:
        return path
    problems.append(f"{index}: {fault}")
    return None


def _hub_blobs(folder: Path) -> list[Path]:
    """Where the cache of Hugging Face's hub keeps the files that `folder` links to, if it is one.

    Its layout is REPOSITORY/snapshots/REVISION/..., all links into REPOSITORY/blobs.
    """
    return [
        (parent.parent / "blobs").resolve()
        for parent in folder.parents
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir()
    ]


def _list_pickle(path: Path, problems: list[str]) -> list[StoredTensor]:
    return [
        StoredTensor(name, dtype, shape, path, read)
        for name, dtype, shape, read in pickles.list_tensors(path, problems)
    ]
