"""Reads PyTorch pipeline folders, as diffusers writes them.

    folder/model_index.json
    folder/escherjax.json  what we add (cameras, resolution); optional
    folder/unet/           config.json, diffusion_pytorch_model.safetensors; else folder/unet_ema/
    folder/vae/            config.json, diffusion_pytorch_model.safetensors; none for pixel models
    folder/image_encoder/  config.json, model.safetensors
    folder/scheduler/      scheduler_config.json

`tensors.find_weights` knows other names for the weights. Every tensor is checked against the
network that config.json describes before anything is returned.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
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
from escherjax.weights import folder_configs, names, strict_json, tensors
from escherjax.weights.strict_json import printable

log = logging.getLogger(__name__)

Params = dict[str, Any]
Place = Callable[[np.ndarray], Any]

# Why a type is not read; the others hold no real numbers.
_TYPE_REFUSALS = {
    "F64": "float32 cannot hold its values",
    "F8_E4M3": "8-bit weights need scales to be read",
    "F8_E5M2": "8-bit weights need scales to be read",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """What a folder of one network says beside the values of its tensors."""

    config: Any  # its sizes: a UNetConfig, VAEConfig or ConvNeXtV2Config
    fields: dict[str, Any]  # of its config.json, as they stand there
    dtypes: dict[str, str]  # today's PyTorch name of each tensor -> stored as "F32", "F16", "BF16"
    source: Path  # the file of weights, or the index of its shards
    ignored: tuple[str, ...]  # stored tensors without a place here, such as a classifier's head


@dataclasses.dataclass(frozen=True)
class PipelineFolder:
    """What a pipeline folder says beside the values of its tensors.

    Writing it again with these changes nothing but values.
    """

    networks: dict[str, Network]  # "unet", "image_encoder", and "vae" unless latents are pixels
    scheduler: dict[str, Any]  # fields of scheduler_config.json
    model_index: dict[str, Any]  # fields of model_index.json, empty where there is none
    card: dict[str, Any] | None  # fields of escherjax.json, unchecked; None where there is none


def read_pipeline_folder(
    folder: str | Path, place: Place = np.asarray
) -> tuple[PipelineFolder, Params]:
    """Reads and checks a whole pipeline folder.

    Half-precision tensors become float32, which keeps their values.

    Args:
        folder: local path.
        place: called with each array as it is read, and what it returns is kept; `jax.device_put`
            so never holds a network twice.

    Returns:
        (what the folder says, the parameters {"unet", "vae", "image_encoder"} in our names and
        layouts). "vae" is empty for a model on pixels.

    Raises:
        UserError: lists everything wrong at once: missing or unreadable files, networks we do not
            compute, and every missing, surplus, mis-shaped or non-finite tensor.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory; expected a pipeline folder.")
    problems: list[str] = []
    card_file = folder / "escherjax.json"
    card = strict_json.read_object(card_file, problems) if card_file.exists() else None
    model_index = strict_json.read_optional(folder / "model_index.json", problems)
    usual, averaged = folder / "unet", folder / "unet_ema"  # of which diffusers may keep one alone
    places = {
        "unet": averaged if averaged.is_dir() and not usual.exists() else usual,
        "vae": folder / "vae",
        "image_encoder": folder / "image_encoder",
    }
    latents = (card or {}).get("latents")
    if isinstance(latents, dict) and latents.get("kind") == "pixels":
        vae = places.pop("vae")
        if vae.exists():
            problems.append(f"{vae}: exists, but escherjax.json says latents are pixels")
    networks: dict[str, Network] = {}
    params: Params = {"vae": {}}
    for name, path in places.items():
        if part := _read_network(path, name, place, problems):
            networks[name], params[name] = part
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    scheduler = strict_json.read_object(scheduler_file, problems) or {}
    _refuse(folder, problems)
    return PipelineFolder(networks, scheduler, model_index, card), params


def read_component(
    folder: str | Path, component: str, place: Place = np.asarray
) -> tuple[Network, Params]:
    """Reads one network from its own folder, such as Stable Diffusion's `unet/`.

    Args:
        folder: local path.
        component: "unet", "vae" or "image_encoder".
        place: as for `read_pipeline_folder`, which also says what is raised.
    """
    if component not in _KINDS:
        raise UserError(f"component must be one of {', '.join(_KINDS)}, got {component!r}.")
    problems: list[str] = []
    part = _read_network(Path(folder), component, place, problems)
    _refuse(Path(folder), problems)
    assert part is not None  # without problems there is a part
    return part


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


# Of each network: names of its weights without suffixes, its sizes from config.json, its parameter
# shapes, and today's name of a stored tensor, None for one of no use here.
_DIFFUSERS_STEMS = ("diffusion_pytorch_model",)
_ENCODER_STEMS = ("model", "pytorch_model")
_KINDS: dict[str, tuple[tuple[str, ...], Callable, Callable, Callable[[str], str | None]]] = {
    "unet": (_DIFFUSERS_STEMS, folder_configs.unet_config, unet_shapes, str),
    "vae": (_DIFFUSERS_STEMS, folder_configs.vae_config, vae_shapes, names.current_vae_name),
    "image_encoder": (
        _ENCODER_STEMS,
        folder_configs.encoder_config,
        encoder_shapes,
        names.current_encoder_name,
    ),
}


def _refuse(folder: Path, problems: list[str]) -> None:
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(
            f"{folder} cannot be used; {len(problems)} problem(s) found:{listed}\n"
            "Expected a folder as diffusers' save_pretrained(..., safe_serialization=True) writes "
            "it. Copy or export it again."
        )


def _read_network(
    folder: Path, name: str, place: Place, problems: list[str]
) -> tuple[Network, Params] | None:
    """One network, or None; what is wrong is added to `problems`."""
    stems, read_config, shapes_of, rename = _KINDS[name]
    if not folder.is_dir():
        problems.append(f"{folder}: directory not found")
        return None
    source = tensors.find_weights(folder, stems, problems)
    listed = None if source is None else tensors.list_tensors(source, problems)
    fields = strict_json.read_object(folder / "config.json", problems)
    if fields is None:
        return None
    try:
        config = read_config(fields)
    except UserError as error:
        problems.append(f"{folder / 'config.json'}: {error}")
        return None
    if source is None or listed is None:
        return None
    plain = [(names.without_wrappers(tensor.name), tensor) for tensor in listed]
    wrapped = [tensor.name for name, tensor in plain if name != tensor.name]
    if wrapped:
        log.info(
            "%s: %d of %d names were read without torch.compile's or DataParallel's prefix, such "
            "as %s",
            *(source, len(wrapped), len(plain), printable(wrapped[0])),
        )
    renamed = [(rename(name), tensor) for name, tensor in plain]
    kept = [(today, tensor) for today, tensor in renamed if today is not None]
    ignored = tuple(sorted(tensor.name for today, tensor in renamed if today is None))
    expected = names.torch_shapes(shapes_of(config))
    params = _read_params(source, kept, expected, place, problems)
    dtypes = {today: tensor.dtype for today, tensor in kept}
    return Network(config, fields, dtypes, source, ignored), params


def _read_params(
    source: Path,
    stored: list[tuple[str, tensors.StoredTensor]],
    expected: Mapping[str, tuple[int, ...]],
    place: Place,
    problems: list[str],
) -> Params:
    """Our tree of (today's name, tensor)s; every deviation from `expected` is a problem."""
    params: dict[names.Path, Any] = {}
    seen: set[str] = set()
    bar = tqdm(stored, f"reading {source.parent.name}", unit="tensor", delay=1, disable=None)
    for name, tensor in bar:
        shape = expected.get(name)
        fault = "is stored twice, under two names" if name in seen else _fault(name, tensor, shape)
        if not fault and shape is not None:
            path = names.path_from_torch(name, len(shape))
            try:
                array = tensor.read().astype(np.float32, copy=False).reshape(shape)
                fault = "" if np.isfinite(array).all() else "has values that are not finite"
                if not fault:
                    params[path] = place(names.array_from_torch(path, array))
            except OSError as error:
                fault = f"cannot be read ({error})"
        if fault:
            problems.append(f"{tensor.source}: tensor {printable(tensor.name)} {fault}")
        seen.add(name)
    for name in sorted(expected.keys() - seen):
        problems.append(f"{source}: tensor {name} {list(expected[name])} is missing")
    return traverse_util.unflatten_dict(params)


def _fault(name: str, tensor: tensors.StoredTensor, expected: tuple[int, ...] | None) -> str:
    """What is wrong with a tensor by its header, "" for nothing; None: the network has none."""
    if expected is None:
        return f"{list(tensor.shape)} is surplus"
    if tensor.shape not in (expected, names.older_shape(name, expected)):
        return f"is {list(tensor.shape)}, expected {list(expected)}"
    if tensor.dtype not in tensors.NUMPY_TYPES:
        reason = _TYPE_REFUSALS.get(tensor.dtype, "it does not hold floating-point numbers")
        return (
            f"is {printable(tensor.dtype)}; {reason}; expected F32, F16 or BF16 (convert it where "
            "it was made)"
        )
    return ""
