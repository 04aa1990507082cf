"""Reads shards at gs://, s3:// and http(s):// addresses by byte ranges, through tensorstore.

A record costs one request of its own size; nothing is downloaded whole, TensorFlow is not needed.
Credentials are those tensorstore finds: Google's application default ones, AWS's profile or
environment, none for public buckets and http.

The array_record library opens local files alone, so the second half of this file reads the layout
of what `shards.write_shard` writes: one record a chunk, uncompressed. Formats:
https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md and
https://github.com/google/array_record/blob/main/cpp/layout.proto. Sizes, types and counts are
checked. The hashes (HighwayHash) are not: in Python they take longer than decoding the pictures.
"""

from __future__ import annotations

import concurrent.futures
import functools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax.errors import UserError
from escherjax.files import is_remote

# Opening fails after about 15 seconds; a long run outlives storage that is away for 15 minutes.
OPENING_RETRIES = 4
READING_RETRIES = 32
_OPENING_THREADS = 32
_KINDS = ("gcs", "s3", "http")

POSTSCRIPT_SIZE = 1 << 16  # the last block of a file says where the footer is

_BLOCK_SIZE = 1 << 16
_BLOCK_HEADER_SIZE = 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")  # hash, data size, data hash, type + records, decoded size
_RECORDS_CHUNK = ord("r")
_UNCOMPRESSED = 0
_POSTSCRIPT_MAGIC = 0x71930E704FDAE05E


def read_file(folder: str | Path, name: str) -> bytes | None:
    """A file of a folder or an address, whole; None if there is none.

    Raises UserError if it cannot be read.
    """
    if is_remote(folder):
        return RemoteFolder(str(folder), OPENING_RETRIES).read(name)
    try:
        return (Path(folder) / name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{Path(folder) / name} cannot be read ({error}).") from error


class RemoteFolder:
    """The files below one address. Safe to use from threads."""

    def __init__(self, address: str, retries: int = READING_RETRIES):
        """Raises UserError for an address that tensorstore does not read; sends no request yet."""
        import tensorstore

        self.address = address.rstrip("/")
        limits = {f"{kind}_request_retries": {"max_retries": retries} for kind in _KINDS}
        try:
            self._store = tensorstore.KvStore.open(
                f"{self.address}/", context=tensorstore.Context(limits)
            ).result()
        except ValueError as error:
            raise UserError(
                f"{address} cannot be opened ({error}); it must be gs://BUCKET/FOLDER, "
                "s3://BUCKET/FOLDER, http(s)://HOST/FOLDER or a folder of this machine."
            ) from error

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """Bytes start .. stop of a file, as a slice names them, or None if there is no such file.

        Raises UserError with the address if they cannot be read: no permission, no network.
        """
        try:
            result = self._store.read(name, byte_range=slice(start, stop)).result()
        except ValueError as error:
            raise UserError(
                f"{self.address}/{name} cannot be read: {str(error)[:300]}. Look at the address, "
                "the network, and whether these credentials may read it."
            ) from error
        return None if result.state == "missing" else result.value


class RemoteShards:
    """Records of many shards as one sequence. Safe to use from threads."""

    def __init__(
        self,
        address: str,
        names: Sequence[str],
        lengths: Sequence[int],
        decode: Callable[[bytes], Any],
    ):
        """Reads every shard's footer.

        Args:
            address: of the folder.
            names: of the shards.
            lengths: number of records that each shard should have.
            decode: makes an item of a record.

        Raises:
            UserError: Names the shards that are missing, cut or of another layout.
        """
        self._decode = decode
        opening = RemoteFolder(address, OPENING_RETRIES)
        self._folder, self._names = RemoteFolder(address), list(names)
        with concurrent.futures.ThreadPoolExecutor(_OPENING_THREADS) as pool:
            found = list(pool.map(functools.partial(_read_bounds, opening), names))
        faults = [
            bounds
            if isinstance(bounds, str)
            else f"{name}: it has {len(bounds) - 1} records; {length} are announced"
            for name, bounds, length in zip(names, found, lengths, strict=True)
            if isinstance(bounds, str) or len(bounds) - 1 != length
        ]
        if faults:
            more = f" ... and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise UserError(
                f"{len(faults)} of {len(names)} shards of {address} cannot be used: "
                f"{'; '.join(faults[:5])}{more}. Copy them again; compressed or grouped shards "
                "must be written again by a data_prep command (ArrayRecord options "
                "'group_size:1,uncompressed')."
            )
        self._bounds = [bounds for bounds in found if not isinstance(bounds, str)]
        self._ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Any:
        """Raises UserError as `RemoteFolder.read`, and LayoutError if what it reads is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        bounds = self._bounds[shard]
        place = index - int(self._ends[shard]) + len(bounds) - 1
        begin, end = bounds[place : place + 2].tolist()
        chunk = self._folder.read(self._names[shard], begin, end)
        if chunk is None:
            raise UserError(f"{self._folder.address}/{self._names[shard]} is gone since opening.")
        return self._decode(read_record(chunk, begin))


def _read_bounds(folder: RemoteFolder, name: str) -> np.ndarray | str:
    """Where the records of a shard lie, or what is wrong with it."""
    postscript = folder.read(name, -POSTSCRIPT_SIZE)
    try:
        if postscript is None:
            return f"{name}: it is missing"
        begin = footer_offset(postscript)
        footer = folder.read(name, begin)
        return chunk_bounds(footer or b"", begin)
    except LayoutError as error:
        return f"{name}: {error}"


class LayoutError(ValueError):
    """Bytes that are not of an ArrayRecord file; the text says why, without naming the file."""


def footer_offset(postscript: bytes) -> int:
    """Where the footer begins. postscript: the last POSTSCRIPT_SIZE bytes of a file.

    Raises LayoutError if the file is cut, or no ArrayRecord file.
    """
    if len(postscript) != POSTSCRIPT_SIZE:
        raise LayoutError(f"it ends with {len(postscript)} bytes of {POSTSCRIPT_SIZE}")
    try:
        fields = _message(_chunk_records(postscript, 0)[0])
    except (LayoutError, IndexError) as error:
        raise LayoutError(f"it has no ArrayRecord postscript ({error})") from error
    if fields.get(2) != _POSTSCRIPT_MAGIC or 1 not in fields:
        raise LayoutError("it has no ArrayRecord postscript (wrong magic number)")
    return fields[1]


def chunk_bounds(footer: bytes, begin: int) -> np.ndarray:
    """Record i lies in the bytes bounds[i] .. bounds[i + 1] of its file: int64 [records + 1].

    footer: the file's bytes from `begin`, its `footer_offset`, on. Raises LayoutError if the footer
    is damaged, or its chunks hold several records.
    """
    metadata, *entries = _chunk_records(footer, begin)
    chunks = [_message(entry) for entry in entries]
    counts = _message(_message(metadata).get(1, b""))
    if counts.get(2) != len(chunks):
        raise LayoutError(f"its footer lists {len(chunks)} chunks of {counts.get(2)}")
    if any(chunk.get(3) != 1 for chunk in chunks):
        raise LayoutError("its records are grouped (group_size above 1)")
    bounds = np.array([chunk.get(1, 0) for chunk in chunks] + [begin], np.int64)
    if (np.diff(bounds) <= 0).any() or bounds[0] < 0:
        raise LayoutError("its footer lists chunks out of order")
    return bounds


def read_record(chunk: bytes, begin: int) -> bytes:
    """The record of one chunk. chunk: the file's bytes from `begin` to the chunk's end or later.

    Raises LayoutError if there is no chunk with one uncompressed record.
    """
    records = _chunk_records(chunk, begin)
    if len(records) != 1:
        raise LayoutError(f"the chunk at byte {begin} holds {len(records)} records")
    return records[0]


def _chunk_records(raw: bytes, begin: int) -> Sequence[bytes]:
    """The records of the chunk that begins at byte `begin` of a file; `raw`: bytes from there."""
    raw = _without_block_headers(raw, begin)
    where = f"the chunk at byte {begin}"
    if len(raw) < _CHUNK_HEADER.size:
        raise LayoutError(f"{where} is cut")
    _, size, _, type_and_count, decoded_size = _CHUNK_HEADER.unpack_from(raw)
    count = type_and_count >> 8
    if type_and_count & 0xFF != _RECORDS_CHUNK:
        raise LayoutError(f"at byte {begin} is no chunk of records")
    data = raw[_CHUNK_HEADER.size : _CHUNK_HEADER.size + size]
    if len(data) < size or size < 2:
        raise LayoutError(f"{where} is cut")
    if data[0] != _UNCOMPRESSED:
        raise LayoutError("it is compressed")
    sizes_size, start = _varint(data, 1)
    place, values = start, start + sizes_size
    bounds = [values]
    for _ in range(min(count, sizes_size)):
        record_size, place = _varint(data, place)
        bounds.append(bounds[-1] + record_size)
    if place != values or bounds[-1] != size or size - values != decoded_size:
        raise LayoutError(f"{where} is damaged: its sizes do not add up")
    return [data[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def _without_block_headers(raw: bytes, begin: int) -> bytes:
    """Every 64 KiB of a file begin with a header that interrupts whatever chunk lies there."""
    first = -begin % _BLOCK_SIZE
    if first >= len(raw):
        return raw
    starts = range(first, len(raw), _BLOCK_SIZE)
    parts = [raw[at + _BLOCK_HEADER_SIZE : at + _BLOCK_SIZE] for at in starts]
    return b"".join([raw[:first], *parts])


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """(value, place behind it) of a protobuf varint."""
    value = shift = 0
    while place < len(data) and shift < 64:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise LayoutError("a number in it is cut")


def _message(data: bytes) -> dict[int, Any]:
    """Field number -> int or bytes, of a protobuf message with such fields alone."""
    fields: dict[int, Any] = {}
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        value, place = _varint(data, place)
        if tag & 7 == 2:
            fields[tag >> 3] = data[place : place + value]
            place += value
        elif tag & 7:
            raise LayoutError("its footer is damaged")
        else:
            fields[tag >> 3] = value
    return fields
