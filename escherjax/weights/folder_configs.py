"""Converts between the `config.json` files of a PyTorch pipeline folder and sizes of networks.

diffusers and transformers describe many more networks than this one. Whatever such a file asks for
and we do not compute is refused by name; fields that change no number are ignored. Files that we
write state each of these values, so that another default cannot change what they mean.
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

# Sizes that are one number: our field -> (field of the file, its default there, the largest).
_Sizes = Mapping[str, tuple[str, int | None, int]]
_UNET_SIZES: _Sizes = {
    "in_channels": ("in_channels", 4, _MAX_SIZE),
    "out_channels": ("out_channels", 4, _MAX_SIZE),
    "layers_per_block": ("layers_per_block", 2, _MAX_LAYERS),
    "num_heads": ("attention_head_dim", 8, _MAX_SIZE),  # the number of heads in this network
    "cross_channels": ("cross_attention_dim", None, _MAX_SIZE),
    "norm_groups": ("norm_num_groups", 32, _MAX_SIZE),
}
_VAE_SIZES: _Sizes = {
    "in_channels": ("in_channels", 3, _MAX_SIZE),
    "latent_channels": ("latent_channels", 4, _MAX_SIZE),
    "layers_per_block": ("layers_per_block", 1, _MAX_LAYERS),
    "norm_groups": ("norm_num_groups", 32, _MAX_SIZE),
}
_ENCODER_SIZES: _Sizes = {
    "patch_size": ("patch_size", 4, _MAX_SIZE),
    "image_size": ("image_size", 224, _MAX_SIZE),
}

_LAYOUT = {"_diffusers_version": "0.18.2"}  # whose fields and tensor names these are


def unet_config(fields: Fields) -> UNetConfig:
    """Sizes in a diffusers UNet2DConditionModel `config.json`; UserError if it is another net."""
    heads = fields.get("attention_head_dim")
    if isinstance(heads, list) and len(set(map(str, heads))) == 1:  # one for each level
        fields = {**fields, "attention_head_dim": heads[0]}
    check = _Checker(fields, _UNET_FIXED)
    attention = check.block_types("down_block_types", _DOWN_BLOCKS)
    if check.block_types("up_block_types", _UP_BLOCKS) != attention[::-1]:
        check.problems.append("up_block_types must mirror down_block_types")
    channels = check.sizes("block_out_channels")
    sizes = check.numbers(_UNET_SIZES)
    check.refuse()
    return UNetConfig(block_channels=channels, attention=attention, **sizes)


def vae_config(fields: Fields) -> VAEConfig:
    """Sizes in a diffusers AutoencoderKL `config.json`; UserError if it is another network."""
    check = _Checker(fields, _VAE_FIXED)
    check.block_types("down_block_types", {_VAE_DOWN_BLOCK: False})
    check.block_types("up_block_types", {_VAE_UP_BLOCK: False})
    channels = check.sizes("block_out_channels")
    sizes = check.numbers(_VAE_SIZES)
    if check.size("out_channels", 3, _MAX_SIZE) != sizes["in_channels"]:
        check.problems.append("out_channels must equal in_channels")
    scaling_factor = check.positive("scaling_factor", 0.18215)
    check.refuse()
    return VAEConfig(block_channels=channels, scaling_factor=scaling_factor, **sizes)


def encoder_config(fields: Fields) -> ConvNeXtV2Config:
    """Sizes in a transformers ConvNextV2 `config.json`; UserError if it is another network."""
    check = _Checker(fields, _ENCODER_FIXED)
    depths = check.sizes("depths", _MAX_LAYERS)
    if depths and fields.get("num_stages", len(depths)) != len(depths):
        check.problems.append(f"num_stages = {fields['num_stages']!r}, but depths = {list(depths)}")
    widths, sizes = check.sizes("hidden_sizes"), check.numbers(_ENCODER_SIZES)
    eps = check.positive("layer_norm_eps", 1e-12)
    check.refuse()
    return ConvNeXtV2Config(depths=depths, widths=widths, final_norm_eps=eps, **sizes)


def unet_fields(config: UNetConfig, sample_size: int) -> dict[str, Any]:
    """The `config.json` of a diffusers UNet2DConditionModel; sample_size: side of the latents."""
    down = {has_attention: name for name, has_attention in _DOWN_BLOCKS.items()}
    up = {has_attention: name for name, has_attention in _UP_BLOCKS.items()}
    return {
        **_LAYOUT,
        **_UNET_FIXED,
        **_number_fields(config, _UNET_SIZES),
        "block_out_channels": list(config.block_channels),
        "down_block_types": [down[attends] for attends in config.attention],
        "sample_size": sample_size,
        "up_block_types": [up[attends] for attends in reversed(config.attention)],
    }


def vae_fields(config: VAEConfig, sample_size: int) -> dict[str, Any]:
    """The `config.json` of a diffusers AutoencoderKL; sample_size: side of the images."""
    num_levels = len(config.block_channels)
    return {
        **_LAYOUT,
        **_VAE_FIXED,
        **_number_fields(config, _VAE_SIZES),
        "block_out_channels": list(config.block_channels),
        "down_block_types": [_VAE_DOWN_BLOCK] * num_levels,
        "out_channels": config.in_channels,
        "sample_size": sample_size,
        "scaling_factor": config.scaling_factor,
        "up_block_types": [_VAE_UP_BLOCK] * num_levels,
    }


def encoder_fields(config: ConvNeXtV2Config) -> dict[str, Any]:
    """The `config.json` of a transformers ConvNextV2Model with weights in float32."""
    return {
        **_ENCODER_FIXED,
        **_number_fields(config, _ENCODER_SIZES),
        "architectures": ["ConvNextV2Model"],
        "depths": list(config.depths),
        "drop_path_rate": 0.0,
        "hidden_sizes": list(config.widths),
        "layer_norm_eps": config.final_norm_eps,
        "num_stages": len(config.depths),
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


def _number_fields(config: Any, sizes: _Sizes) -> dict[str, int]:
    return {theirs: getattr(config, ours) for ours, (theirs, _, _) in sizes.items()}


class _Checker:
    """Takes values from a config.json and collects what is wrong with them."""

    def __init__(self, fields: Fields, fixed: Fields):
        self.fields = fields
        self.problems = [
            f"{name} must be {value!r}, got {quoted(fields[name])}"
            for name, value in fixed.items()
            if name in fields and fields[name] != value
        ]

    def refuse(self) -> None:
        """Raises one UserError with all problems, if there are any."""
        if self.problems:
            raise UserError("; ".join(self.problems))

    def numbers(self, sizes: _Sizes) -> dict[str, int]:
        """Our field -> number, for all `sizes`."""
        return {ours: self.size(*theirs) for ours, theirs in sizes.items()}

    def size(self, name: str, default: int | None, limit: int) -> int:
        value = self.fields.get(name, default)
        if not _is_size(value, limit):
            self._expect(name, value, f"a positive integer, at most {limit}")
            return 0
        return value

    def sizes(self, name: str, limit: int = _MAX_SIZE) -> tuple[int, ...]:
        value = self.fields.get(name)
        if (
            not isinstance(value, list)
            or not 0 < len(value) <= _MAX_LEVELS
            or not all(_is_size(entry, limit) for entry in value)
        ):
            expected = f"a list of positive integers, up to {_MAX_LEVELS} of at most {limit}"
            self._expect(name, value, expected)
            return ()
        return tuple(value)

    def positive(self, name: str, default: float) -> float:
        value = self.fields.get(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not _FLOAT32_RANGE[0] <= value <= _FLOAT32_RANGE[1]:
            self._expect(name, value, "a positive number that float32 holds")
            return default
        return float(value)

    def block_types(self, name: str, known: Mapping[str, bool]) -> tuple[bool, ...]:
        """Which levels have attention, by the names of their block types."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(v, str) and v in known for v in value):
            self._expect(name, value, f"a list of {' or '.join(known)}")
            return ()
        channels = self.fields.get("block_out_channels")
        if isinstance(channels, list) and len(value) != len(channels):
            self.problems.append(
                f"{name} must have one entry for each block_out_channels, got {len(value)}"
            )
        return tuple(known[v] for v in value)

    def _expect(self, name: str, value: Any, expected: str) -> None:
        self.problems.append(f"{name} must be {expected}, got {quoted(value)}")


def _is_size(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= limit
