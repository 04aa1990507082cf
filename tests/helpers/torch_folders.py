"""Small random pipeline folders, written by diffusers and transformers themselves."""

import json
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import ConvNextV2Config, ConvNextV2Model


def write_folder(
    path,
    seed,
    cape="6dof",
    dtype=torch.float32,
    *,
    channels=(32, 64),
    heads=4,
    layers=1,
    vae_channels=(8, 16),
    encoder_widths=(16, 32),
    encoder_depths=(1, 1),
    image_size=32,
    patch=None,
    resolution=16,
    prediction_type="epsilon",
) -> Path:
    """Writes model_index.json, unet/, vae/, image_encoder/, scheduler/ and escherjax.json.

    cape: what escherjax.json says; None leaves that file out, as published folders do. dtype: of
    every stored tensor. heads: attention heads everywhere (widths of heads: channels / heads).
    image_size: side of the encoder's input. patch: pixels of this patch size as latents, without
    vae/. resolution: of the views. No parameter is zero or at its default. Returns the path.
    """
    path = Path(path)
    latent_channels = 4 if patch is None else 3 * patch**2
    last = len(channels) - 1
    down = [f"{'' if i == last else 'CrossAttn'}DownBlock2D" for i in range(len(channels))]
    networks = {
        "unet": UNet2DConditionModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=channels,
            down_block_types=down,
            up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
            layers_per_block=layers,
            attention_head_dim=heads,
            cross_attention_dim=encoder_widths[-1],
            norm_num_groups=8,
            sample_size=resolution // (2 ** (len(vae_channels) - 1) if patch is None else patch),
        ),
        "image_encoder": ConvNextV2Model(
            ConvNextV2Config(
                hidden_sizes=list(encoder_widths),
                depths=list(encoder_depths),
                num_stages=len(encoder_depths),
                image_size=image_size,
            )
        ),
    }
    if patch is None:
        networks["vae"] = AutoencoderKL(
            block_out_channels=vae_channels,
            down_block_types=["DownEncoderBlock2D"] * len(vae_channels),
            up_block_types=["UpDecoderBlock2D"] * len(vae_channels),
            norm_num_groups=4,
            sample_size=resolution,
        )
    generator = torch.Generator().manual_seed(seed)
    for name, network in networks.items():
        for parameter_name, parameter in network.named_parameters():
            _draw(parameter_name, parameter, generator)
        network.to(dtype).save_pretrained(path / name, safe_serialization=True)
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(path / "scheduler")
    classes = {
        "_class_name": "EscherNetPipeline",
        "_diffusers_version": diffusers.__version__,
        "image_encoder": ["transformers", "ConvNextV2Model"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    if patch is None:
        classes["vae"] = ["diffusers", "AutoencoderKL"]
    _write_json(path / "model_index.json", classes)
    if cape is not None:
        facts = {
            "format": 1,
            "escherjax": "0.1.0",
            "cape": cape,
            "camera_matrix": "world_to_camera",
            "camera_axes": "opengl",
            "camera_handedness": "right",
            "world_up": "z",
            "translation_unit": "longest side of the object = 1",
            "resolution": resolution,
            "num_references": [1, 2],
            "num_targets": 2,
            "latents": {"kind": "vae"} if patch is None else {"kind": "pixels", "patch": patch},
            "weights": "raw",
            "trained_steps": 0,
            "guidance_scale": 3.0,
        }
        _write_json(path / "escherjax.json", facts)
    return path


@torch.no_grad()
def _draw(name: str, parameter: torch.nn.Parameter, generator: torch.Generator) -> None:
    """Kernels of variance 1 / fan_in, gains near 1, small biases; GRN is far from doing nothing."""
    normal = torch.randn(parameter.shape, generator=generator)
    if ".grn." in name:
        parameter.copy_((0.5 if name.endswith("weight") else 0.1) * normal)
    elif name.endswith("bias"):
        parameter.copy_(0.05 * normal)
    elif parameter.ndim == 1:
        parameter.copy_(1 + 0.1 * normal)
    else:
        parameter.copy_(normal / parameter[0].numel() ** 0.5)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
