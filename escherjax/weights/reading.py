"""Reading PyTorch pipeline folders, as diffusers writes them.

    folder/model_index.json
    folder/escherjax.json  what we add (cameras, resolution); optional
    folder/unet/           config.json, diffusion_pytorch_model.safetensors; else folder/unet_ema/
    folder/vae/            config.json, diffusion_pytorch_model.safetensors; none for pixel models
    folder/image_encoder/  config.json, model.safetensors
    folder/scheduler/      scheduler_config.json

`layouts` says which other names are known for the weights. Every tensor is checked against the
network that config.json describes before anything is returned.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from escherjax.errors import UserError
from escherjax.models.convnextv2 import ConvNeXtV2, ConvNeXtV2Config
from escherjax.models.unet import UNet, UNetConfig
from escherjax.models.vae import VAE, VAEConfig
from escherjax.weights import folder_configs, layouts, names, strict_json, tensors
from escherjax.weights.stored import StoredFormat
from escherjax.weights.strict_json import shown

Params = dict[str, Any]
Place = Callable[[np.ndarray], Any]

# Why a type is not read; the others hold no real numbers.
_TYPE_REFUSALS = {
    "F64": "float32 cannot hold its values",
    "F8_E4M3": "8-bit weights need scales to be read",
    "F8_E5M2": "8-bit weights need scales to be read",
}


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What was read of one network: component is "unet", "vae" or "image_encoder".

    source: the file of weights, or the index of its shards. loaded: number of tensors read.
    ignored: stored names of tensors that the network has no place for, such as a classifier's head.
    """

    component: str
    source: Path
    loaded: int
    ignored: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PipelineFolder:
    """What a pipeline folder holds.

    vae: None for a model on pixels, whose folder has none. scheduler: the fields of
    scheduler_config.json. params: {"unet", "vae", "image_encoder"}, trees of float32 arrays in our
    names and layouts; "vae" is empty for a model on pixels. stored: how it was written. facts: the
    fields of escherjax.json, unchecked; None where the folder has none. reports: one for each
    network read.
    """

    unet: UNetConfig
    vae: VAEConfig | None
    image_encoder: ConvNeXtV2Config
    scheduler: dict[str, Any]
    params: Params
    stored: StoredFormat
    facts: dict[str, Any] | None
    reports: tuple[LoadReport, ...]


def read_pipeline_folder(folder: str | Path, place: Place = np.asarray) -> PipelineFolder:
    """Reads and checks a whole pipeline folder.

    Half-precision tensors become float32, which keeps their values. place: called with each array
    as it is read, and what it returns is kept; `jax.device_put` so never holds a network twice.
    Raises one UserError that lists everything wrong: missing or unreadable files, networks we do
    not compute, and every missing, surplus, mis-shaped or non-finite tensor.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; needed a pipeline folder. Correct the path.")
    problems: list[str] = []
    facts = strict_json.read_optional(folder / "escherjax.json", problems)
    model_index = strict_json.read_optional(folder / "model_index.json", problems) or {}
    parts = {"unet": _read_component(_unet_folder(folder), "unet", place, problems)}
    if not _is_on_pixels(facts):
        parts["vae"] = _read_component(folder / "vae", "vae", place, problems)
    elif (folder / "vae").exists():
        problems.append(f"{folder / 'vae'}: is there, but escherjax.json says latents are pixels")
    encoder = _read_component(folder / "image_encoder", "image_encoder", place, problems)
    parts["image_encoder"] = encoder
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    scheduler = strict_json.read_object(scheduler_file, problems) or {}
    _refuse(folder, problems)
    read = {name: part for name, part in parts.items() if part is not None}
    return PipelineFolder(
        unet=read["unet"].config,
        vae=read["vae"].config if "vae" in read else None,
        image_encoder=read["image_encoder"].config,
        scheduler=scheduler,
        params={"vae": {}, **{name: part.params for name, part in read.items()}},
        stored=StoredFormat(
            model_index=model_index,
            configs={**{n: part.fields for n, part in read.items()}, "scheduler": scheduler},
            dtypes={name: part.dtypes for name, part in read.items()},
        ),
        facts=facts,
        reports=tuple(part.report for part in read.values()),
    )


def read_component(
    folder: str | Path, component: str, place: Place = np.asarray
) -> tuple[Any, Params, LoadReport]:
    """Reads one network from its own folder, such as Stable Diffusion's `unet/`.

    component: "unet", "vae" or "image_encoder". place: as for `read_pipeline_folder`. Returns
    (config, params, report); raises UserError as `read_pipeline_folder` does.
    """
    if component not in _COMPONENTS:
        raise UserError(f"component = {component!r}; needed one of {', '.join(_COMPONENTS)}.")
    problems: list[str] = []
    part = _read_component(Path(folder), component, place, problems)
    _refuse(Path(folder), problems)
    assert part is not None  # without problems there is a part
    return part.config, part.params, part.report


@functools.lru_cache
def unet_shapes(config: UNetConfig) -> Params:
    """Our parameter tree of a U-Net as `jax.ShapeDtypeStruct`s."""
    return _shapes(
        UNet(config, cape="none"),
        _floats(1, 1, 1, 1, config.in_channels),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        _floats(1, 1, 1, config.cross_channels),
        {},
        {},
    )


@functools.lru_cache
def vae_shapes(config: VAEConfig) -> Params:
    """Our parameter tree of an autoencoder as `jax.ShapeDtypeStruct`s."""
    side = 2 ** len(config.block_channels)
    return _shapes(VAE(config), _floats(1, side, side, config.in_channels))


@functools.lru_cache
def encoder_shapes(config: ConvNeXtV2Config) -> Params:
    """Our parameter tree of an image encoder as `jax.ShapeDtypeStruct`s."""
    return _shapes(ConvNeXtV2(config), _floats(1, config.image_size, config.image_size, 3))


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _shapes(module: Any, *args: Any) -> Params:
    return jax.eval_shape(module.init, jax.random.key(0), *args)["params"]


@dataclasses.dataclass(frozen=True)
class _Component:
    """How one network is stored.

    stems: names of the weights without suffixes. rename: a stored tensor name to today's name, or
    None for a tensor of no use here.
    """

    stems: tuple[str, ...]
    config: Callable[[folder_configs.Fields], Any]
    shapes: Callable[[Any], Params]
    rename: Callable[[str], str | None]


_DIFFUSERS_STEMS = ("diffusion_pytorch_model",)
_COMPONENTS = {
    "unet": _Component(_DIFFUSERS_STEMS, folder_configs.unet_config, unet_shapes, str),
    "vae": _Component(
        _DIFFUSERS_STEMS, folder_configs.vae_config, vae_shapes, names.current_vae_name
    ),
    "image_encoder": _Component(
        ("model", "pytorch_model"),
        folder_configs.encoder_config,
        encoder_shapes,
        names.current_encoder_name,
    ),
}


@dataclasses.dataclass(frozen=True)
class _Part:
    """One network as it was read. dtypes: today's PyTorch name -> stored type."""

    config: Any
    params: Params
    fields: dict[str, Any]
    dtypes: dict[str, str]
    report: LoadReport


def _refuse(folder: Path, problems: list[str]) -> None:
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(
            f"{folder} cannot be used; {len(problems)} problem(s) found:{listed}\n"
            "Needed: a folder as diffusers' save_pretrained(..., safe_serialization=True) writes "
            "it. Copy or export it again."
        )


def _unet_folder(folder: Path) -> Path:
    """The U-Net's folder, or where diffusers keeps its average if that is all there is."""
    usual, averaged = folder / "unet", folder / "unet_ema"
    return averaged if averaged.is_dir() and not usual.exists() else usual


def _is_on_pixels(facts: dict[str, Any] | None) -> bool:
    latents = (facts or {}).get("latents")
    return isinstance(latents, dict) and latents.get("kind") == "pixels"


def _read_component(folder: Path, name: str, place: Place, problems: list[str]) -> _Part | None:
    """One network, or None; what is wrong is added to `problems`."""
    component = _COMPONENTS[name]
    if not folder.is_dir():
        problems.append(f"{folder}: this folder is missing")
        return None
    source = layouts.find_weights(folder, component.stems, problems)
    listed = None if source is None else tensors.list_tensors(source, problems)
    fields = strict_json.read_object(folder / "config.json", problems)
    if fields is None:
        return None
    try:
        config = component.config(fields)
    except UserError as error:
        problems.append(f"{folder / 'config.json'}: {error}")
        return None
    if source is None or listed is None:
        return None
    renamed = [(component.rename(tensor.name), tensor) for tensor in listed]
    kept = [(today, tensor) for today, tensor in renamed if today is not None]
    ignored = tuple(sorted(tensor.name for today, tensor in renamed if today is None))
    expected = names.torch_shapes(component.shapes(config))
    params = _read_params(source, kept, expected, place, problems)
    dtypes = {today: tensor.dtype for today, tensor in kept}
    return _Part(config, params, fields, dtypes, LoadReport(name, source, len(kept), ignored))


def _read_params(
    source: Path,
    stored: list[tuple[str, tensors.StoredTensor]],
    expected: dict[str, tuple[int, ...]],
    place: Place,
    problems: list[str],
) -> Params:
    """Our tree of (today's name, tensor)s; every deviation from `expected` is a problem."""
    params: dict[names.Path, Any] = {}
    seen: set[str] = set()
    bar = tqdm(stored, f"reading {source.parent.name}", unit="tensor", delay=1, disable=None)
    for name, tensor in bar:
        where = f"{tensor.source}: tensor {shown(tensor.name)}"
        if name not in expected:
            problems.append(f"{where} {list(tensor.shape)} is surplus")
            continue
        shape = expected[name]
        if name in seen:
            problems.append(f"{where} is stored twice, under an old and a new name")
        elif tensor.shape not in (shape, names.older_shape(name, shape)):
            problems.append(f"{where} is {list(tensor.shape)}; needed {list(shape)}")
        elif tensor.dtype not in tensors.NUMPY_TYPES:
            reason = _TYPE_REFUSALS.get(tensor.dtype, "it does not hold floating-point numbers")
            needed = "F32, F16 or BF16 (convert it where it was made)"
            problems.append(f"{where} is {shown(tensor.dtype)}; {reason}; needed {needed}")
        else:
            path = names.path_from_torch(name, len(shape))
            array = _read_float32(tensor, where, problems)
            if array is not None:
                params[path] = place(names.array_from_torch(path, array.reshape(shape)))
        seen.add(name)
    for name in sorted(expected.keys() - seen):
        problems.append(f"{source}: tensor {name} {list(expected[name])} is missing")
    return traverse_util.unflatten_dict(params)


def _read_float32(
    tensor: tensors.StoredTensor, where: str, problems: list[str]
) -> np.ndarray | None:
    """The values, or None where they cannot be read or are not all finite."""
    try:
        array = tensor.read().astype(np.float32, copy=False)
    except OSError as error:
        problems.append(f"{where} cannot be read ({error})")
        return None
    if not np.isfinite(array).all():
        problems.append(f"{where} has values that are not finite")
        return None
    return array
