"""Reading PyTorch pipeline folders, as diffusers writes them, without PyTorch.

    folder/unet/           config.json, diffusion_pytorch_model.safetensors
    folder/vae/            config.json, diffusion_pytorch_model.safetensors
    folder/image_encoder/  config.json, model.safetensors
    folder/scheduler/      scheduler_config.json

Only safetensors files are read: opening a pickle (.bin, .pt, .ckpt) can run any code. Every tensor
is checked against the network that config.json describes before anything is returned.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from escherjax.errors import UserError
from escherjax.models.convnextv2 import ConvNeXtV2, ConvNeXtV2Config
from escherjax.models.unet import UNet, UNetConfig
from escherjax.models.vae import VAE, VAEConfig
from escherjax.weights import folder_configs, names

Params = dict[str, Any]

_FLOAT_TYPES = ("F16", "BF16", "F32", "F64")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


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

    scheduler: the fields of scheduler_config.json. params: {"unet", "vae", "image_encoder"}, trees
    of float32 numpy arrays in our names and layouts.
    """

    unet: UNetConfig
    vae: VAEConfig
    image_encoder: ConvNeXtV2Config
    scheduler: dict[str, Any]
    params: Params


def read_pipeline_folder(folder: str | Path) -> PipelineFolder:
    """Reads and checks a whole pipeline folder.

    Half-precision tensors become float32, which keeps their values. Raises one UserError that
    lists everything wrong: missing or unreadable files, networks we do not compute, and every
    missing, surplus, mis-shaped or non-finite tensor.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; needed a pipeline folder. Correct the path.")
    problems: list[str] = []
    parts = {name: _read_component(folder / name, name, problems) for name in _COMPONENTS}
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json", problems)
    _refuse(folder, problems)
    return PipelineFolder(
        scheduler=scheduler,
        params={name: params for name, (_, params, _) in parts.items()},
        **{name: config for name, (config, _, _) in parts.items()},
    )


def read_component(folder: str | Path, component: str) -> tuple[Any, Params, LoadReport]:
    """Reads one network from its own folder, such as Stable Diffusion's `unet/`.

    component: "unet", "vae" or "image_encoder". Returns (config, params, report); raises
    UserError as `read_pipeline_folder` does.
    """
    if component not in _COMPONENTS:
        raise UserError(f"component = {component!r}; needed one of {', '.join(_COMPONENTS)}.")
    problems: list[str] = []
    config, params, report = _read_component(Path(folder), component, problems)
    _refuse(Path(folder), problems)
    return config, params, report


def unet_shapes(config: UNetConfig) -> Params:
    """Our parameter tree of a U-Net as `jax.ShapeDtypeStruct`s."""
    return _shapes(
        UNet(config, cape="none"),
        jnp.zeros((1, 1, 1, 1, config.in_channels)),
        jnp.zeros((1,), jnp.int32),
        jnp.zeros((1, 1, 1, config.cross_channels)),
        {},
        {},
    )


def vae_shapes(config: VAEConfig) -> Params:
    """Our parameter tree of an autoencoder as `jax.ShapeDtypeStruct`s."""
    side = 2 ** len(config.block_channels)
    return _shapes(VAE(config), jnp.zeros((1, side, side, config.in_channels)))


def encoder_shapes(config: ConvNeXtV2Config) -> Params:
    """Our parameter tree of an image encoder as `jax.ShapeDtypeStruct`s."""
    return _shapes(ConvNeXtV2(config), jnp.zeros((1, config.image_size, config.image_size, 3)))


def _shapes(module: Any, *args: Any) -> Params:
    return jax.eval_shape(module.init, jax.random.key(0), *args)["params"]


@dataclasses.dataclass(frozen=True)
class _Component:
    """How one network is stored.

    rename: a stored tensor name to today's name, or None for a tensor of no use here.
    """

    weights_file: str
    config: Callable[[folder_configs.Fields], Any]
    shapes: Callable[[Any], Params]
    rename: Callable[[str], str | None]


def _encoder_name(name: str) -> str | None:
    """The published ConvNeXt V2 classifiers have a prefix and a head; EscherNet has neither."""
    return None if name.startswith("classifier.") else name.removeprefix("convnextv2.")


_COMPONENTS = {
    "unet": _Component(
        "diffusion_pytorch_model.safetensors", folder_configs.unet_config, unet_shapes, str
    ),
    "vae": _Component(
        "diffusion_pytorch_model.safetensors",
        folder_configs.vae_config,
        vae_shapes,
        names.current_vae_name,
    ),
    "image_encoder": _Component(
        "model.safetensors", folder_configs.encoder_config, encoder_shapes, _encoder_name
    ),
}


def _refuse(folder: Path, problems: list[str]) -> None:
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(
            f"{folder} cannot be used; {len(problems)} problem(s) found:{listed}\n"
            "Needed: a folder as diffusers' save_pretrained(..., safe_serialization=True) writes "
            "it. Copy or export it again."
        )


def _read_component(
    folder: Path, name: str, problems: list[str]
) -> tuple[Any, Params, LoadReport]:
    """(config, params, report) of one network; what is wrong is added to `problems`."""
    component = _COMPONENTS[name]
    nothing = None, {}, LoadReport(name, folder, 0, ())
    if not folder.is_dir():
        problems.append(f"{folder}: this folder is missing")
        return nothing
    weights = _find_weights(folder, component.weights_file, problems)
    fields = _read_json(folder / "config.json", problems)
    if not fields or weights is None:
        return nothing
    try:
        config = component.config(fields)
    except UserError as error:
        problems.append(f"{folder / 'config.json'}: {error}")
        return nothing
    expected = names.torch_shapes(component.shapes(config))
    ignored: list[str] = []
    params = _read_tensors(weights, expected, component.rename, problems, ignored)
    report = LoadReport(name, weights, len(jax.tree.leaves(params)), tuple(ignored))
    return config, params, report


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """The object in a JSON file; empty, with a problem added, where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror})")
        return {}
    except ValueError as error:
        problems.append(f"{path}: is not JSON ({error})")
        return {}
    if not isinstance(content, dict) or not content:
        problems.append(f"{path}: needed a JSON object with fields")
        return {}
    return content


def _find_weights(folder: Path, file_name: str, problems: list[str]) -> Path | None:
    """The safetensors file of a component: of the usual name, or the only one there."""
    usual = folder / file_name
    if usual.is_file():
        return usual
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    pickles = sorted(p for p in folder.iterdir() if p.suffix in _PICKLES)
    if others:
        found = ", ".join(path.name for path in others)
        problems.append(f"{usual}: is missing, found {found}; merge or rename to {file_name}")
    elif pickles:
        source = pickles[0]
        problems.append(
            f"{usual}: is missing, found only {source.name}, a pickle, which is not opened because "
            "it can run any code. If you trust it, convert it where PyTorch is installed:\n"
            '    python -c "import torch, safetensors.torch as s; '
            f"s.save_file({{k: v.contiguous() for k, v in torch.load('{source}', "
            f"map_location='cpu', weights_only=True).items()}}, '{usual}')\""
        )
    else:
        problems.append(f"{usual}: is missing")
    return None


def _read_tensors(
    path: Path,
    expected: dict[str, tuple[int, ...]],
    rename: Callable[[str], str | None],
    problems: list[str],
    ignored: list[str],
) -> Params:
    """Our tree of the tensors in a file, float32; every deviation from `expected` is a problem."""
    params: dict[names.Path, np.ndarray] = {}
    seen: set[str] = set()
    try:
        with safe_open(path, framework="numpy") as file:
            for stored in sorted(file.keys()):
                name = rename(stored)
                if name is None:
                    ignored.append(stored)
                    continue
                where = f"{path}: tensor {stored}"
                header = file.get_slice(stored)
                shape = tuple(header.get_shape())
                if name not in expected:
                    problems.append(f"{where} {list(shape)} is surplus")
                elif name in seen:
                    problems.append(f"{where} is stored twice, under an old and a new name")
                elif shape != expected[name]:
                    problems.append(f"{where} is {list(shape)}; needed {list(expected[name])}")
                elif header.get_dtype() not in _FLOAT_TYPES:
                    problems.append(f"{where} is {header.get_dtype()}; needed a float type")
                else:
                    array = np.asarray(file.get_tensor(stored)).astype(np.float32)
                    if not np.isfinite(array).all():
                        problems.append(f"{where} has values that are not finite")
                    ours = names.path_from_torch(name, array.ndim)
                    params[ours] = names.array_from_torch(ours, array)
                seen.add(name)
    except (SafetensorError, OSError) as error:
        problems.append(f"{path}: is not a whole safetensors file ({error})")
        return {}
    for name in sorted(expected.keys() - seen):
        problems.append(f"{path}: tensor {name} {list(expected[name])} is missing")
    return traverse_util.unflatten_dict(params)
