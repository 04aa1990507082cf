"""Writing a safetensors file tensor by tensor, so that its size does not bound the memory needed.

The library's own writers take all tensors at once. The bytes are the same as theirs: 8 bytes of
header length (little-endian), a JSON header padded with spaces to a multiple of 8, then the data;
types in falling order of alignment, names in order within a type.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

# In the order in which the library writes them.
DTYPES = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """dtype: a key of `DTYPES`; shape: sizes of the axes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write(path: Path, specs: Mapping[str, TensorSpec], read: Callable[[str], np.ndarray]) -> None:
    """Writes and syncs a file of the tensors in `specs`; a long one shows its progress.

    read: gives the array of a name, of the shape in `specs`; called once for each, when its turn
    comes, and cast to the type in `specs`. Raises OSError where the file cannot be written.
    """
    rank = list(DTYPES)
    ordered = sorted(specs, key=lambda name: (rank.index(specs[name].dtype), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        spec = specs[name]
        begin, end = end, end + spec.num_bytes
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        bar = tqdm(ordered, f"writing {path.parent.name}", unit="tensor", delay=1, disable=None)
        for name in bar:
            array, spec = read(name), specs[name]
            if array.shape != spec.shape:
                raise ValueError(f"{name} has shape {array.shape}, not {spec.shape}")
            array = np.ascontiguousarray(array, DTYPES[spec.dtype])
            file.write(array.reshape(-1).view(np.uint8))
        file.flush()
        os.fsync(file.fileno())
