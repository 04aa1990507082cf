"""Sizes of a network from the `config.json` files of a PyTorch pipeline folder, and back.

diffusers and transformers describe many more networks than this one. Whatever such a file asks for
and we do not compute is refused by name; fields that change no number are ignored. Files that we
write say each of these values, so that another default cannot change what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from escherjax.errors import UserError
from escherjax.models.convnextv2 import ConvNeXtV2Config
from escherjax.models.unet import UNetConfig
from escherjax.models.vae import VAEConfig
from escherjax.weights.strict_json import quoted

Fields = Mapping[str, Any]

# The one value of each field that our networks compute; a file may leave a field out.
_UNET_FIXED = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_attention_heads": None,  # diffusers refuses it; the number is in attention_head_dim
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "use_linear_projection": False,
}
_VAE_FIXED = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_ENCODER_FIXED = {"hidden_act": "gelu", "model_type": "convnextv2", "num_channels": 3}

# Larger numbers are no network of today: they would only keep us busy for hours before the refusal.
_MAX_SIZE = 2**16
_MAX_LAYERS = 128  # of one level or stage
_MAX_LEVELS = 8
_FLOAT32_RANGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

_DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # -> has attention
_UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_VAE_DOWN_BLOCK, _VAE_UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"

_LAYOUT = {"_diffusers_version": "0.18.2"}  # whose fields and tensor names these are


def unet_config(fields: Fields) -> UNetConfig:
    """Sizes in a diffusers UNet2DConditionModel `config.json`; UserError if it is another net."""
    problems = _other_values(fields, _UNET_FIXED)
    channels = _sizes(fields, "block_out_channels", problems)
    attention = _block_types(fields, "down_block_types", _DOWN_BLOCKS, problems)
    if _block_types(fields, "up_block_types", _UP_BLOCKS, problems) != attention[::-1]:
        problems.append("up_block_types does not mirror down_block_types; needed the mirror image")
    # diffusers' attention_head_dim is, in this network, the number of heads.
    heads = "attention_head_dim"
    per_level = fields.get(heads, 8)
    if isinstance(per_level, list) and len(set(map(str, per_level))) == 1:
        fields = {**fields, heads: per_level[0]}
    sizes = {
        "in_channels": _size(fields, "in_channels", problems, 4),
        "out_channels": _size(fields, "out_channels", problems, 4),
        "layers_per_block": _size(fields, "layers_per_block", problems, 2, _MAX_LAYERS),
        "num_heads": _size(fields, heads, problems, 8),
        "cross_channels": _size(fields, "cross_attention_dim", problems),
        "norm_groups": _size(fields, "norm_num_groups", problems, 32),
    }
    _refuse(problems)
    return UNetConfig(block_channels=channels, attention=attention, **sizes)


def vae_config(fields: Fields) -> VAEConfig:
    """Sizes in a diffusers AutoencoderKL `config.json`; UserError if it is another network."""
    problems = _other_values(fields, _VAE_FIXED)
    channels = _sizes(fields, "block_out_channels", problems)
    _block_types(fields, "down_block_types", {_VAE_DOWN_BLOCK: False}, problems)
    _block_types(fields, "up_block_types", {_VAE_UP_BLOCK: False}, problems)
    sizes = {
        "in_channels": _size(fields, "in_channels", problems, 3),
        "latent_channels": _size(fields, "latent_channels", problems, 4),
        "layers_per_block": _size(fields, "layers_per_block", problems, 1, _MAX_LAYERS),
        "norm_groups": _size(fields, "norm_num_groups", problems, 32),
    }
    if _size(fields, "out_channels", problems, 3) != sizes["in_channels"]:
        problems.append("out_channels differs from in_channels; needed equal numbers")
    scaling_factor = _positive(fields, "scaling_factor", problems, 0.18215)
    _refuse(problems)
    return VAEConfig(block_channels=channels, scaling_factor=scaling_factor, **sizes)


def encoder_config(fields: Fields) -> ConvNeXtV2Config:
    """Sizes in a transformers ConvNextV2 `config.json`; UserError if it is another network."""
    problems = _other_values(fields, _ENCODER_FIXED)
    depths = fields.get("depths")
    if isinstance(depths, list) and fields.get("num_stages", len(depths)) != len(depths):
        problems.append(f"num_stages = {fields['num_stages']!r}, but depths = {depths!r}")
    config = {
        "depths": _sizes(fields, "depths", problems, _MAX_LAYERS),
        "widths": _sizes(fields, "hidden_sizes", problems),
        "patch_size": _size(fields, "patch_size", problems, 4),
        "image_size": _size(fields, "image_size", problems, 224),
        "final_norm_eps": _positive(fields, "layer_norm_eps", problems, 1e-12),
    }
    _refuse(problems)
    return ConvNeXtV2Config(**config)


def unet_fields(config: UNetConfig, sample_size: int) -> dict[str, Any]:
    """The `config.json` of a diffusers UNet2DConditionModel; sample_size: side of the latents."""
    down = {has_attention: name for name, has_attention in _DOWN_BLOCKS.items()}
    up = {has_attention: name for name, has_attention in _UP_BLOCKS.items()}
    return {
        **_LAYOUT,
        **_UNET_FIXED,
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": config.num_heads,
        "block_out_channels": list(config.block_channels),
        "cross_attention_dim": config.cross_channels,
        "down_block_types": [down[attends] for attends in config.attention],
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": sample_size,
        "up_block_types": [up[attends] for attends in reversed(config.attention)],
    }


def vae_fields(config: VAEConfig, sample_size: int) -> dict[str, Any]:
    """The `config.json` of a diffusers AutoencoderKL; sample_size: side of the images."""
    num_levels = len(config.block_channels)
    return {
        **_LAYOUT,
        **_VAE_FIXED,
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(config.block_channels),
        "down_block_types": [_VAE_DOWN_BLOCK] * num_levels,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.in_channels,
        "sample_size": sample_size,
        "scaling_factor": config.scaling_factor,
        "up_block_types": [_VAE_UP_BLOCK] * num_levels,
    }


def encoder_fields(config: ConvNeXtV2Config) -> dict[str, Any]:
    """The `config.json` of a transformers ConvNextV2Model with weights in float32."""
    return {
        **_ENCODER_FIXED,
        "architectures": ["ConvNextV2Model"],
        "depths": list(config.depths),
        "drop_path_rate": 0.0,
        "hidden_sizes": list(config.widths),
        "image_size": config.image_size,
        "layer_norm_eps": config.final_norm_eps,
        "num_stages": len(config.depths),
        "patch_size": config.patch_size,
        "torch_dtype": "float32",
    }


def model_index(has_vae: bool) -> dict[str, Any]:
    """The `model_index.json` of a pipeline: which library's class reads each folder."""
    index: dict[str, Any] = {
        **_LAYOUT,
        "_class_name": "EscherNetPipeline",
        "image_encoder": ["transformers", "ConvNextV2Model"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    return index | ({"vae": ["diffusers", "AutoencoderKL"]} if has_vae else {})


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UserError("; ".join(problems))


def _other_values(fields: Fields, fixed: Fields) -> list[str]:
    return [
        f"{name} = {quoted(fields[name])} is not supported; needed {value!r}"
        for name, value in fixed.items()
        if name in fields and fields[name] != value
    ]


def _is_size(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= limit


def _size(
    fields: Fields,
    name: str,
    problems: list[str],
    default: int | None = None,
    limit: int = _MAX_SIZE,
) -> int:
    value = fields.get(name, default)
    if not _is_size(value, limit):
        needed = f"a positive integer, at most {limit}"
        problems.append(f"{name} = {quoted(value)}; needed {needed}")
        return 0
    return value


def _sizes(
    fields: Fields, name: str, problems: list[str], limit: int = _MAX_SIZE
) -> tuple[int, ...]:
    value = fields.get(name)
    if (
        not isinstance(value, list)
        or not 0 < len(value) <= _MAX_LEVELS
        or not all(_is_size(entry, limit) for entry in value)
    ):
        needed = f"a list of positive integers, up to {_MAX_LEVELS} of at most {limit}"
        problems.append(f"{name} = {quoted(value)}; needed {needed}")
        return ()
    return tuple(value)


def _positive(fields: Fields, name: str, problems: list[str], default: float) -> float:
    value = fields.get(name, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not _FLOAT32_RANGE[0] <= value <= _FLOAT32_RANGE[1]:
        problems.append(f"{name} = {quoted(value)}; needed a positive number that float32 holds")
        return default
    return float(value)


def _block_types(
    fields: Fields, name: str, known: Mapping[str, bool], problems: list[str]
) -> tuple[bool, ...]:
    """Which levels have attention, by the names of their block types."""
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(v, str) and v in known for v in value):
        problems.append(f"{name} = {quoted(value)}; needed a list of {' or '.join(known)}")
        return ()
    channels = fields.get("block_out_channels")
    if isinstance(channels, list) and len(value) != len(channels):
        problems.append(f"{name} has {len(value)} entries; needed one for each block_out_channels")
    return tuple(known[v] for v in value)
