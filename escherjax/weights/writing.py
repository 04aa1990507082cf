"""Writing PyTorch pipeline folders, as diffusers and transformers read them, without PyTorch.

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
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from escherjax.errors import UserError
from escherjax.models.diffusion import schedule as schedule_lib
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.vae import VAE
from escherjax.weights import facts as facts_lib
from escherjax.weights import folder_configs, names, safetensors_file
from escherjax.weights.facts import Facts
from escherjax.weights.safetensors_file import DTYPES, TensorSpec
from escherjax.weights.stored import StoredFormat

log = logging.getLogger("escherjax.weights")

_TYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_WEIGHTS_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "image_encoder": "model.safetensors",
}
_MOST_NAMES = 3  # of tensors in one line of the log

Leaves = Mapping[str, tuple[names.Path, Any]]  # PyTorch name -> path in our tree, array


def save_pipeline_folder(
    folder: str | Path,
    model: EscherNet,
    params: Params,
    facts: Facts,
    stored: StoredFormat | None = None,
    dtype: str | None = None,
) -> None:
    """Writes a pipeline folder, whole or not at all.

    params: {"unet", "vae", "image_encoder"}, arrays on host or device; one tensor more than these
    is held at a time. stored: of the folder the weights were read from; its configs are written
    again field by field, and its tensors in the types they had there.
    dtype: "float32", "float16" or "bfloat16", rounding where it must; None rounds nothing: a
    network of which any value does not fit the stored type is written in float32, which is logged.
    Raises UserError for a folder that is not empty or cannot be written, and, listing every
    tensor, for values that are not finite, or would not be in `dtype`.
    """
    folder = Path(folder).resolve()
    check_target(folder)
    if dtype not in (None, *_TYPE_NAMES):
        raise UserError(f"dtype = {dtype!r}; needed one of {', '.join(_TYPE_NAMES)}, or None.")
    stored = stored or StoredFormat(model_index={}, configs={}, dtypes={})
    parts = ["unet", "image_encoder"] + (["vae"] if isinstance(model.codec, VAE) else [])
    leaves = {part: _leaves(params[part]) for part in parts}
    problems: list[str] = []
    types = {
        part: _types(part, leaves[part], stored.dtypes.get(part, {}), dtype, problems)
        for part in parts
    }
    if problems:
        raise UserError(f"{folder} is not written:\n  " + "\n  ".join(problems))
    configs = _configs(model, facts.resolution, stored, types)
    index = stored.model_index or folder_configs.model_index("vae" in parts)

    def fill(partial: Path) -> None:
        for part in parts:
            (partial / part).mkdir()
            _write_json(partial / part / "config.json", configs[part])
            specs = {
                name: TensorSpec(types[part][name], names.torch_shape(path, tuple(leaf.shape)))
                for name, (path, leaf) in leaves[part].items()
            }
            safetensors_file.write(
                partial / part / _WEIGHTS_FILES[part], specs, _reader(leaves[part], specs)
            )
            _sync(partial / part)
        (partial / "scheduler").mkdir()
        _write_json(partial / "scheduler" / "scheduler_config.json", configs["scheduler"])
        _sync(partial / "scheduler")
        _write_json(partial / facts_lib.FILE_NAME, facts.to_json())
        _write_json(partial / "model_index.json", index)

    _make_whole(folder, fill)


def check_target(folder: Path) -> None:
    """Raises UserError if `folder` is a file, or holds anything."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder that is empty or does not exist.")
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


def _reader(leaves: Leaves, specs: Mapping[str, TensorSpec]) -> Callable[[str], np.ndarray]:
    def read(name: str) -> np.ndarray:
        path, leaf = leaves[name]
        # Cast before moving elements: fewer bytes to move.
        array = _host(leaf).astype(DTYPES[specs[name].dtype], copy=False)
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
            problems.append(f"{where} is {array.dtype}; needed {', '.join(_TYPE_NAMES)}")
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
        return array.astype(DTYPES[dtype], copy=False)


def _survives(array: np.ndarray, dtype: str) -> bool:
    if DTYPES[dtype] == array.dtype or dtype == "F32":
        return True
    return bool((_cast(array, dtype).astype(np.float32) == array.astype(np.float32)).all())


def _configs(
    model: EscherNet,
    resolution: int,
    stored: StoredFormat,
    types: Mapping[str, Mapping[str, str]],
) -> dict[str, dict[str, Any]]:
    """The JSON files of all parts: as they were stored, else made from our sizes."""
    torch_names = {value: key for key, value in _TYPE_NAMES.items()}
    side = model.latent_shape(resolution)[0]
    make = {
        "unet": lambda: folder_configs.unet_fields(model.unet.config, side),
        "vae": lambda: folder_configs.vae_fields(model.codec.config, resolution),
        "image_encoder": lambda: folder_configs.encoder_fields(model.encoder.config),
        "scheduler": lambda: schedule_lib.to_diffusers(model.schedule),
    }
    configs = {
        part: dict(stored.configs.get(part) or make[part]()) for part in (*types, "scheduler")
    }
    for part, written in types.items():
        if written == stored.dtypes.get(part):
            continue
        # transformers reads weights in the type that the config names.
        found = set(written.values())
        dtype = torch_names[found.pop()] if len(found) == 1 else "float32"
        configs[part] |= {
            field: dtype for field in ("torch_dtype", "dtype") if field in configs[part]
        }
    return configs
