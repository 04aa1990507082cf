"""Shards on gs://, s3:// and http(s)://, read by byte ranges through tensorstore.

A record costs one request of its own size; nothing is downloaded whole, TensorFlow is not needed.
Credentials are those tensorstore finds: Google's application default ones, AWS's profile or
environment, none for public buckets and http.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax.data import riegeli
from escherjax.errors import UserError
from escherjax.files import is_remote

# Opening fails after about 15 seconds; a long run outlives storage that is away for 15 minutes.
OPENING_RETRIES = 4
READING_RETRIES = 32
_OPENING_THREADS = 32
_KINDS = ("gcs", "s3", "http")


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
        """Raises UserError if tensorstore reads no such address; asks nothing of the network."""
        import tensorstore

        self.address = address.rstrip("/")
        limits = {f"{kind}_request_retries": {"max_retries": retries} for kind in _KINDS}
        try:
            self._store = tensorstore.KvStore.open(
                f"{self.address}/", context=tensorstore.Context(limits)
            ).result()
        except ValueError as error:
            raise UserError(
                f"{address} cannot be opened ({error}); needed gs://BUCKET/FOLDER, "
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

        lengths: the number of records each shard should have. decode: what an item is made by.
        Raises UserError naming all shards that are missing, cut or of another layout.
        """
        self._decode = decode
        opening = RemoteFolder(address, OPENING_RETRIES)
        self._folder, self._names = RemoteFolder(address), list(names)
        with concurrent.futures.ThreadPoolExecutor(_OPENING_THREADS) as pool:
            found = list(pool.map(lambda name: _read_bounds(opening, name), names))
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
        return self._decode(riegeli.read_record(chunk, begin))


def _read_bounds(folder: RemoteFolder, name: str) -> np.ndarray | str:
    """Where the records of a shard lie, or what is wrong with it."""
    postscript = folder.read(name, -riegeli.POSTSCRIPT_SIZE)
    try:
        if postscript is None:
            return f"{name}: it is missing"
        begin = riegeli.footer_offset(postscript)
        footer = folder.read(name, begin)
        return riegeli.chunk_bounds(footer or b"", begin)
    except riegeli.LayoutError as error:
        return f"{name}: {error}"
