"""Reads pipeline folders component by component with diffusers and transformers.

    folder/unet/           diffusers' UNet2DConditionModel
    folder/vae/            diffusers' AutoencoderKL; absent where latents are pixels
    folder/image_encoder/  transformers' ConvNextV2Model
    folder/scheduler/      a scheduler config, read as DDIM whatever class it names
    folder/escherjax.json  camera facts; absent in published folders

Classes are not taken from model_index.json: published ones name some that no library has. Only
safetensors are read, since opening a pickle can run any code. Where a tensor is missing, stock
loaders initialise it at random and log a warning; here that is an error.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import is_accelerate_available
from safetensors import SafetensorError
from transformers import ConvNextV2Model

from escherjax.errors import UserError
from escherjax.pytorch.cameras import CAPE_VARIANTS, check_cape

FACTS_FILE = "escherjax.json"

# The camera conventions that this code computes, and that folders without facts are in.
CONVENTIONS: dict[str, Any] = {
    "format": 1,
    "camera_matrix": "world_to_camera",
    "camera_axes": "opengl",
    "camera_handedness": "right",
    "world_up": "z",
}
# ConvNeXt V2's response normalisation, as it was named at first.
OLD_ENCODER_NAMES = {r"grn\.gamma$": "grn.weight", r"grn\.beta$": "grn.bias"}

PUBLISHED_FACTS = {**CONVENTIONS, "resolution": 256, "latents": {"kind": "vae"}}


def read_folder(
    path: str | Path,
    cape: str | None = None,
    torch_dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> dict[str, Any]:
    """Reads everything in a pipeline folder.

    Args:
        path: local folder.
        cape: camera encoding; None takes the one in escherjax.json or else in the folder's name.
        torch_dtype: of the networks, whatever they are stored in.
        variant: the middle of file names such as diffusion_pytorch_model.fp16.safetensors.

    Returns:
        {"unet", "vae", "image_encoder", "scheduler", "facts"}; "vae" is None where latents are
        pixels.

    Raises:
        UserError: lists everything wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a directory; expected a local pipeline folder. Download one first, "
            "for instance with huggingface_hub.snapshot_download."
        )
    problems: list[str] = []
    facts = _read_facts(folder, cape, problems)
    classes = {"unet": UNet2DConditionModel, "image_encoder": ConvNextV2Model, "vae": AutoencoderKL}
    parts: dict[str, Any] = {"facts": facts, "vae": None}
    for name, network_class in classes.items():
        if name != "vae" or facts["latents"]["kind"] == "vae":
            parts[name] = _read_network(
                network_class, folder / name, torch_dtype, variant, problems
            )
    parts["scheduler"] = _read_scheduler(folder / "scheduler", problems)
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(
            f"{folder} cannot be used; {len(problems)} problem(s) found:{listed}\n"
            "Expected a folder that escherjax.export wrote, or one of the published layout."
        )
    return parts


def write_facts(folder: str | Path, facts: dict[str, Any]) -> None:
    """Writes escherjax.json into `folder`, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _read_facts(folder: Path, cape: str | None, problems: list[str]) -> dict[str, Any]:
    """Facts with every field that the pipeline reads; what is wrong is added to `problems`."""
    path = folder / FACTS_FILE
    facts = dict(PUBLISHED_FACTS)
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(stored, dict):
                raise ValueError(f"must be a JSON object, got a {type(stored).__name__}")
            found = [
                f"{field} must be {expected}, got {stored.get(field)!r}"
                for field, (is_valid, expected) in _RULES.items()
                if not is_valid(stored.get(field))
            ]
            facts = facts if found else stored
        except (OSError, ValueError) as error:
            found = [f"cannot be read ({error})"]
        problems += [f"{path}: {problem}" for problem in found]
    if cape is not None:
        return {**facts, "cape": check_cape(cape)}
    if "cape" not in facts:
        named = [name for name in ("6dof", "4dof") if name in folder.resolve().name.lower()]
        facts["cape"] = named[0] if len(named) == 1 else None
    if facts["cape"] not in CAPE_VARIANTS:
        problems.append(
            f"the camera encoding must be one of {', '.join(CAPE_VARIANTS)}, got {facts['cape']}; "
            "pass cape="
        )
    return facts


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_latents(value: Any) -> bool:
    kind = value.get("kind") if isinstance(value, dict) else None
    return kind == "vae" or (kind == "pixels" and _is_size(value.get("patch")))


# What a field of the facts must be: a test, and the same in words.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{
        name: (functools.partial(operator.eq, value), repr(value))
        for name, value in CONVENTIONS.items()
    },
    "resolution": (_is_size, "a number of pixels"),
    "latents": (_are_latents, '{"kind": "vae"} or {"kind": "pixels", "patch": pixels}'),
}


def _read_network(
    network_class: Any,
    folder: Path,
    torch_dtype: torch.dtype,
    variant: str | None,
    problems: list[str],
) -> Any:
    """A network with every tensor from its file; None, with problems added, if that cannot be."""
    if not folder.is_dir():
        problems.append(f"{folder}: directory not found")
        return None
    if network_class is ConvNextV2Model:
        options: dict[str, Any] = {"key_mapping": OLD_ENCODER_NAMES}
    else:
        # Otherwise diffusers looks for accelerate, does without and warns.
        options = {"low_cpu_mem_usage": is_accelerate_available(), "torch_dtype": torch_dtype}
    try:
        network, report = network_class.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        problems.append(f"{folder}: {error}{_other_files(folder)}")
        return None
    found = [
        f"{folder}: {kind} {tensor}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        for tensor in sorted(map(str, report.get(kind) or ()))
    ]
    found += [
        f"{folder}: tensor {name} has values that are not finite"
        for name, tensor in network.state_dict().items()
        if not torch.isfinite(tensor).all()
    ]
    problems += found
    if found:
        return None
    # transformers' argument for the dtype has changed its name, so it is set afterwards.
    return network.to(torch_dtype) if network_class is ConvNextV2Model else network


def _other_files(folder: Path) -> str:
    """What to do with the weights that lie in a folder under other names; empty if none do."""
    variants = sorted(path.name for path in folder.glob("*.*.safetensors"))
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    hint = ""
    if variants:
        hint += f" (found {', '.join(variants)}: pass variant=, such as variant='fp16')"
    if pickles:
        hint += (
            f" (found {', '.join(pickles)}, a pickle, which is not opened as it can run any code; "
            "python -m escherjax.export writes the folder as safetensors)"
        )
    return hint


def _read_scheduler(folder: Path, problems: list[str]) -> DDIMScheduler | None:
    """A DDIM scheduler with the noise schedule of the one stored.

    Training saves a DDPM config that keeps DDIM's fields beside its own, and Stable Diffusion a
    PNDM one; reading either as DDIM takes the fields it knows.
    """
    path = folder / "scheduler_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return DDIMScheduler.from_config(config)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        problems.append(f"{path}: {error}")
        return None
