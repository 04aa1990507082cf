"""Writes PyTorch pipeline folders, as diffusers and transformers read them, without PyTorch.

folder/model_index.json
folder/escherjax.json  what the weights expect of cameras and views (`escherjax.weights.facts`)
folder/unet/           config.json, diffusion_pytorch_model.safetensors
folder/vae/            the same; absent where latents are pixels
folder/image_encoder/  config.json, model.safetensors
folder/scheduler/      scheduler_config.json
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from escherjax.errors import UserError
from escherjax.models.diffusion import schedule as schedule_lib
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.vae import VAE
from escherjax.weights import facts as facts_lib
from escherjax.weights import folder_configs, names
from escherjax.weights.facts import ModelCard
from escherjax.weights.reading import PipelineFolder
from escherjax.weights.tensors import NUMPY_TYPES

log = logging.getLogger("escherjax.weights")

_TYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_WEIGHTS_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "image_encoder": "model.safetensors",
}
_MOST_NAMES = 3  # of tensors in one line of the log

Leaves = Mapping[str, tuple[names.Path, Any]]  # PyTorch name -> path in our tree, array
Specs = Mapping[str, tuple[str, tuple[int, ...]]]  # PyTorch name -> "F32", "F16" or "BF16", shape


def save_pipeline_folder(
    folder: str | Path,
    model: EscherNet,
    params: Params,
    card: ModelCard,
    stored: PipelineFolder | None = None,
    dtype: str | None = None,
) -> None:
    """Writes a pipeline folder, whole or not at all.

    Args:
        folder: new or empty.
        model: sizes of the networks.
        params: {"unet", "vae", "image_encoder"}, arrays on host or device; one tensor more than
            these is held at a time.
        card: what the weights expect of cameras and views.
        stored: what the folder said that the weights were read from. Its configs are written again
            field by field, and its tensors in the types they had there.
        dtype: "float32", "float16" or "bfloat16", rounding where it must. None rounds nothing: a
            network of which any value does not fit the stored type is written in float32, which is
            logged.

    Raises:
        UserError: for a folder that is not empty or cannot be written, and, listing every tensor,
            for values that are not finite, or would not be in `dtype`.
    """
    folder = Path(folder).resolve()
    check_target(folder)
    if dtype not in (None, *_TYPE_NAMES):
        raise UserError(f"dtype must be one of {', '.join(_TYPE_NAMES)} or None, got {dtype!r}.")
    parts = ["unet", "image_encoder"] + (["vae"] if isinstance(model.codec, VAE) else [])
    leaves = {part: _leaves(params[part]) for part in parts}
    networks = stored.networks if stored else {}
    stored_types = {name: network.dtypes for name, network in networks.items()}
    problems: list[str] = []
    types = {
        part: _types(part, leaves[part], stored_types.get(part, {}), dtype, problems)
        for part in parts
    }
    if problems:
        raise UserError(f"{folder} is not written:\n  " + "\n  ".join(problems))
    side = model.latent_shape(card.resolution)[0]
    configs = {
        "unet": folder_configs.unet_fields(model.unet.config, side),
        "image_encoder": folder_configs.encoder_fields(model.encoder.config),
    }
    if isinstance(model.codec, VAE):
        configs["vae"] = folder_configs.vae_fields(model.codec.config, card.resolution)
    configs |= {part: networks[part].fields for part in parts if part in networks}
    for part in parts:
        if types[part] != stored_types.get(part):
            configs[part] = _with_dtype(configs[part], types[part])
    scheduler = stored.scheduler if stored else {}
    index = stored.model_index if stored else {}

    def fill(partial: Path) -> None:
        for part in parts:
            (partial / part).mkdir()
            _write_json(partial / part / "config.json", configs[part])
            specs = {
                name: (types[part][name], names.torch_shape(path, tuple(leaf.shape)))
                for name, (path, leaf) in leaves[part].items()
            }
            write_safetensors(
                partial / part / _WEIGHTS_FILES[part], specs, _reader(leaves[part], specs)
            )
            _sync(partial / part)
        (partial / "scheduler").mkdir()
        _write_json(
            partial / "scheduler" / "scheduler_config.json",
            scheduler or schedule_lib.to_diffusers(model.schedule),
        )
        _sync(partial / "scheduler")
        _write_json(partial / facts_lib.FILE_NAME, card.to_json())
        _write_json(
            partial / "model_index.json", index or folder_configs.model_index("vae" in parts)
        )

    _make_whole(folder, fill)


def check_target(folder: Path) -> None:
    """Raises UserError if `folder` is a file, or holds anything."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder that is empty or does not exist.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a folder that is, or does not exist.")


def _make_whole(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder beside `folder` and renames it, so that none ever has half the content."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            fill(partial)
            _sync(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _sync(folder.parent)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}), and nothing of it was kept. "
            "Remove the cause, or name a folder elsewhere."
        ) from error


def _sync(folder: Path) -> None:
    """Has the names in a folder on disk before anything relies on them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _leaves(params: Params) -> Leaves:
    flat = traverse_util.flatten_dict(params)
    return {names.torch_from_path(path): (path, leaf) for path, leaf in flat.items()}


def _host(leaf: Any) -> np.ndarray:
    """A host array. A device array keeps the host copy made of it, so that is made of a copy."""
    return np.asarray(leaf.copy() if isinstance(leaf, jax.Array) else leaf)


def _reader(leaves: Leaves, specs: Specs) -> Callable[[str], np.ndarray]:
    def read(name: str) -> np.ndarray:
        path, leaf = leaves[name]
        # Cast before moving elements: fewer bytes to move.
        array = _host(leaf).astype(NUMPY_TYPES[specs[name][0]], copy=False)
        return names.array_to_torch(path, array)

    return read


def _types(
    part: str, leaves: Leaves, stored: Mapping[str, str], dtype: str | None, problems: list[str]
) -> dict[str, str]:
    """The type each tensor of a network is written in; adds what cannot be written to problems."""
    types: dict[str, str] = {}
    misfits = []
    for name, (_, leaf) in leaves.items():
        array, where = _host(leaf), f"{part}: tensor {name}"
        own = _TYPE_NAMES.get(array.dtype.name)
        if own is None:
            problems.append(f"{where} must be one of {', '.join(_TYPE_NAMES)}, got {array.dtype}")
        elif not np.isfinite(array).all():
            problems.append(f"{where} has values that are not finite")
        elif dtype is not None:
            types[name] = _TYPE_NAMES[dtype]
            if not np.isfinite(_cast(array, types[name])).all():
                problems.append(f"{where} has values beyond the range of {dtype}")
        else:
            types[name] = stored.get(name, own)
            if not _survives(array, types[name]):
                misfits.append(name)
    if misfits:
        log.warning(
            "%s is written in float32: %d of %d tensors, such as %s, have values that the type "
            "they were stored in would round",
            part,
            len(misfits),
            len(leaves),
            ", ".join(misfits[:_MOST_NAMES]),
        )
        return dict.fromkeys(types, "F32")
    return types


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(NUMPY_TYPES[dtype], copy=False)


def _survives(array: np.ndarray, dtype: str) -> bool:
    if NUMPY_TYPES[dtype] == array.dtype or dtype == "F32":
        return True
    return bool((_cast(array, dtype).astype(np.float32) == array.astype(np.float32)).all())


def write_safetensors(path: Path, specs: Specs, read: Callable[[str], np.ndarray]) -> None:
    """Writes and syncs a safetensors file tensor by tensor; a long one shows its progress.

    The library's own writers take all tensors at once, a second copy of the network. The bytes are
    theirs: 8 bytes of header length (little-endian), a JSON header padded with spaces to a multiple
    of 8, then the data; types in falling order of alignment, names in order within a type.

    Args:
        path: file to write.
        specs: type and shape of each tensor.
        read: gives the array of a name, called once for each when its turn comes, and cast to the
            type in `specs`.
    """
    rank = list(NUMPY_TYPES)
    ordered = sorted(specs, key=lambda name: (rank.index(specs[name][0]), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        dtype, shape = specs[name]
        begin, end = end, end + math.prod(shape) * NUMPY_TYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        bar = tqdm(ordered, f"writing {path.parent.name}", unit="tensor", delay=1, disable=None)
        for name in bar:
            array, (dtype, shape) = read(name), specs[name]
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
            array = np.ascontiguousarray(array, NUMPY_TYPES[dtype])
            file.write(array.reshape(-1).view(np.uint8))
        file.flush()
        os.fsync(file.fileno())


def _with_dtype(fields: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    """A config that names the type its tensors are written in: transformers reads them as such."""
    found = set(types.values())
    torch_names = {value: key for key, value in _TYPE_NAMES.items()}
    dtype = torch_names[found.pop()] if len(found) == 1 else "float32"
    return {**fields, **{name: dtype for name in ("torch_dtype", "dtype") if name in fields}}
