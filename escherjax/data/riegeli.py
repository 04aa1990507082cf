"""The layout of ArrayRecord files, to read one record of a file that is far away.

Bytes may come from anywhere; the array_record library opens files itself. Read is what
`records.write_shard` writes: one record a chunk, uncompressed. Formats:
https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md and
https://github.com/google/array_record/blob/main/cpp/layout.proto. Sizes, types and counts are
checked. The hashes (HighwayHash) are not: in Python they take longer than decoding the pictures.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

POSTSCRIPT_SIZE = 1 << 16  # the last block of a file says where the footer is

_BLOCK_SIZE = 1 << 16
_BLOCK_HEADER_SIZE = 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")  # hash, data size, data hash, type + records, decoded size
_RECORDS_CHUNK = ord("r")
_UNCOMPRESSED = 0
_POSTSCRIPT_MAGIC = 0x71930E704FDAE05E


class LayoutError(ValueError):
    """The bytes are not of such a file; the text says how, without naming the file."""


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


def _message(data: bytes) -> dict:
    """Field number -> int or bytes, of a protobuf message with such fields alone."""
    fields: dict = {}
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        value, place = _varint(data, place)
        if tag & 7 == 2:
            size, value = value, data[place : place + value]
            place += size
        elif tag & 7:
            raise LayoutError("its footer is damaged")
        fields[tag >> 3] = value
    return fields
