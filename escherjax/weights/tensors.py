"""Finds the weights in a network's folder and lists their tensors: safetensors, shards, pickles.

diffusers and transformers write STEM.safetensors, in shards STEM.safetensors.index.json, and as
variants STEM.fp16.safetensors and STEM.safetensors.index.fp16.json; with .bin in place of
.safetensors for pickles. Listing reads headers only; values are read when asked for, so that no
more than one tensor is in memory beside what the caller keeps.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from escherjax.weights import strict_json
from escherjax.weights.strict_json import printable

# Types that are read; float32 holds all their values. In the order in which safetensors writes.
NUMPY_TYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
}
_SUFFIXES = ("safetensors", "bin")  # the first kind wins
_OTHER_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\b")
_MAX_FILE_NAME = 255  # bytes; file systems take no longer ones
_ENTRY = {"dtype", "shape", "data_offsets"}  # of a tensor in a header
_SOUND_TORCH = (2, 6)
_SHARED_STORE_MARK = ".huggingface-shared-blobs"  # of the blobs that a hub's cache shares


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, whose values have not been read yet."""

    name: str
    dtype: str  # in the words of safetensors: "F32", "F16", "BF16", "I64", ...
    shape: tuple[int, ...]
    source: Path  # the file that holds it
    read: Callable[[], np.ndarray]  # its values; OSError where the file has changed meanwhile


def find_weights(folder: Path, stems: tuple[str, ...], problems: list[str]) -> Path | None:
    """The file or index to read; None, with a problem added, where there is none or no single one.

    stems: names without suffixes, the usual one first. A safetensors file wins over a .bin; the
    plain name over a variant; a variant over the only safetensors file of another name.
    """
    whole = [p for p in sorted(folder.iterdir()) if p.is_file() and not _SHARD.search(p.name)]
    names = "|".join(map(re.escape, stems))
    for suffix in _SUFFIXES:
        patterns = [
            rf"(?:{names}){variant}\.{suffix}|(?:{names})\.{suffix}\.index{variant}\.json"
            for variant in ("", r"(?:\.[\w-]+)")
        ] + ([r".*\.safetensors"] if suffix == "safetensors" else [])
        for pattern in patterns:
            found = [path for path in whole if re.fullmatch(pattern, path.name)]
            if len(found) == 1:
                return found[0]
            if found:
                problems.append(
                    f"{folder}: has several files of weights, "
                    f"{', '.join(path.name for path in found)}; keep the one to use here, or link "
                    f"it to {stems[0]}.{suffix} if none has that name"
                )
                return None
    problems.append(f"{folder / stems[0]}.safetensors: {_why_missing(folder, stems)}")
    return None


def _why_missing(folder: Path, stems: tuple[str, ...]) -> str:
    if any((folder / f"{stem}.{suffix}").is_dir() for stem in stems for suffix in _SUFFIXES):
        return "is a directory; expected a file"
    names = sorted(path.name for path in folder.iterdir())
    shards = [name for name in names if _SHARD.search(name)]
    if shards:
        return f"not found, nor the .index.json that lists what is in {', '.join(shards)}"
    pickles = [name for name in names if name.endswith(_OTHER_PICKLES)]
    if pickles:
        return (
            f"not found, only {', '.join(pickles)}, which is not opened: a pickle can run any "
            f"code. Name it {stems[-1]}.bin if it holds this network's tensors by name and you "
            "trust it, or save it again as safetensors"
        )
    return "not found"


def list_tensors(path: Path, problems: list[str]) -> list[StoredTensor] | None:
    """Every tensor of `path`: .safetensors, .bin, or the .json index of shards.

    None where anything is wrong with the files themselves; all of it is added to `problems`.
    """
    kinds = {".json": _list_shards, ".bin": _list_pickle}
    found: list[str] = []
    tensors = kinds.get(path.suffix, _list_safetensors)(path, found)
    problems += found
    return None if found else tensors


def _list_safetensors(path: Path, problems: list[str]) -> list[StoredTensor]:
    try:
        # Not as a memory map, whose pages count as memory, and whose file may be cut short.
        file = safe_open(path, framework="np", backend="pread")
        with path.open("rb") as raw:
            # The library lets the later of two equal names win, and ignores unknown fields.
            header = strict_json.parse_object(raw.read(int.from_bytes(raw.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and entry.keys() != _ENTRY:
                raise ValueError(
                    f"tensor {printable(name)} must have dtype, shape and data_offsets alone"
                )
    except (OSError, ValueError, SafetensorError) as error:
        problems.append(f"{path}: is not a whole safetensors file ({_reason(path, error)})")
        return []
    tensors = []
    for name in file.keys():  # noqa: SIM118 (not a dict)
        entry = file.get_slice(name)
        read = functools.partial(_read_slice, file, name)
        shape = tuple(entry.get_shape())
        tensors.append(StoredTensor(name, entry.get_dtype(), shape, path, read))
    return tensors


def _read_slice(file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except SafetensorError as error:
        raise OSError(printable(str(error))) from error


def _reason(path: Path, error: Exception) -> str:
    """Why a file is not safetensors; well-known other files are recognised."""
    try:
        with path.open("rb") as file:
            opening = file.read(9)
    except OSError:
        opening = b""
    if opening[8:] != b"{":  # else a header, whose length may look like the mark of a pickle
        if opening.startswith((b"PK\x03\x04", b"\x80")):
            return "it is a pickle under another name; those are opened as .bin only"
        if opening.startswith(b"version "):
            return "it is a Git LFS pointer in place of the file; run: git lfs pull"
    return printable(str(error))


def _list_shards(path: Path, problems: list[str]) -> list[StoredTensor]:
    index = strict_json.read_object(path, problems)
    if index is None:
        return []
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files:
        problems.append(f"{path}: weight_map must list the file of each tensor, got {files!r:.80}")
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
            where = f"{tensor.source}: tensor {printable(tensor.name)}"
            if tensor.name in found:
                problems.append(f"{where} is also in {found[tensor.name].source.name}")
            elif listed != file_name:
                listing = "does not list it" if listed is None else f"names {printable(listed)}"
                problems.append(f"{where} is stored here, but {path.name} {listing}")
            found[tensor.name] = tensor
    for name, file_name in weight_map.items():
        if file_name in shards and name not in found:
            problems.append(f"{path}: tensor {printable(name)} is listed but not in {file_name}")
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
        fault = f"names {printable(file_name)}; expected a {kind} file in its own folder"
    elif not path.is_file():
        fault = f"names {file_name}, which is not found or not a file"
    elif path.resolve().parent != folder.resolve() and not any(
        path.resolve().is_relative_to(blobs) for blobs in _hub_blobs(folder)
    ):
        fault = f"names {file_name}, a link out of the folder; copy the file itself here"
    else:
        return path
    problems.append(f"{index}: {fault}")
    return None


def _hub_blobs(folder: Path) -> list[Path]:
    """Where the cache of Hugging Face's hub keeps the files that `folder` links to, if it is one.

    Its layout is ROOT/REPOSITORY/snapshots/REVISION/..., all links into REPOSITORY/blobs; since
    huggingface_hub 1.32 those may be links on into ROOT/blobs, which all repositories share.
    """
    repositories = {
        parent.parent
        for path in (folder.absolute(), folder.resolve())
        for parent in path.parents
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir()
    }
    stores = []
    for repository in repositories:
        stores.append((repository / "blobs").resolve())
        if (repository.parent / "blobs" / _SHARED_STORE_MARK).is_file():
            stores.append((repository.parent / "blobs").resolve())
    return stores


def _list_pickle(path: Path, problems: list[str]) -> list[StoredTensor]:
    """The dense tensors by name in a pickle, built by PyTorch's restricted reader only.

    Unpickling can run any code. `torch.load(weights_only=True)` builds tensors and plain containers
    only, and is sound from PyTorch 2.6 on (CVE-2025-32434).
    """
    refusal = why_no_pickles()
    if refusal:
        problems.append(f"{path}: is a pickle, which could run any code; {refusal}")
        return []
    import torch

    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # the form before PyTorch 1.6 cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle makes its reader raise nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problems.append(f"{path}: PyTorch does not open it with weights_only=True ({reason})")
        return []
    if not isinstance(content, dict):
        problems.append(f"{path}: must hold tensors by name, got a {type(content).__name__}")
        return []
    words = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    tensors = []
    for name, tensor in content.items():
        if not (
            isinstance(name, str)
            and isinstance(tensor, torch.Tensor)
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
        ):
            kind = type(tensor).__name__
            problems.append(f"{path}: {printable(str(name))} is a {kind}, not a dense tensor")
            continue
        dtype = words.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        read = functools.partial(_numpy_from_torch, tensor)
        tensors.append(StoredTensor(name, dtype, tuple(tensor.shape), path, read))
    return tensors


def why_no_pickles() -> str | None:
    """Why .bin files cannot be opened here, and what to do; None where they can."""
    if importlib.util.find_spec("torch") is None:
        return (
            "only PyTorch opens it safely, and PyTorch is not installed. Install it (pip install "
            "torch), or use a .safetensors file"
        )
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SOUND_TORCH:
        return (
            f"PyTorch {torch.__version__} does not open it safely, 2.6 and later do. Upgrade it, "
            "or use a .safetensors file"
        )
    return None


def _numpy_from_torch(tensor: Any) -> np.ndarray:
    import torch

    # A copy: the tensor itself is the mapped file, and would change with it.
    copied = tensor.detach().clone(memory_format=torch.contiguous_format)
    if copied.dtype == torch.bfloat16:
        return copied.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return copied.numpy()
