"""Reference tokens from transformers' ConvNextV2Model.

EscherNet (arXiv 2402.03908, section 3.1) keeps every position of the last feature map as a token:
49 for an image of 224 pixels. Two things differ from how transformers uses the same network: the
final LayerNorm acts on each token in place of the pooled vector, and images are resized without
antialiasing, as the published weights were trained.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import ConvNextV2Model

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def preprocess(images: torch.Tensor, image_size: int = 224) -> torch.Tensor:
    """Resizes and normalises images for the encoder, in float32.

    images: [N, 3, H, W] in [-1, 1]. Bicubic of a = -0.75 at half-pixel centres, without
    antialiasing and without clamping overshoot. Returns float32 [N, 3, image_size, image_size].
    """
    resized = F.interpolate(
        images.float() / 2 + 0.5,
        size=(image_size, image_size),
        mode="bicubic",
        align_corners=False,
        antialias=False,
    )
    mean, std = (
        torch.tensor(values, device=images.device).reshape(3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (resized - mean) / std


def encode_tokens(encoder: ConvNextV2Model, images: torch.Tensor) -> torch.Tensor:
    """Reference tokens [N, L, D] of images [N, 3, H, W] in [-1, 1], row by row of the last map.

    The network runs in its own dtype, which is that of the tokens.
    """
    pixels = preprocess(images, encoder.config.image_size).to(encoder.dtype)
    feature_map = encoder(pixel_values=pixels).last_hidden_state  # [N, D, h, w]
    return encoder.layernorm(feature_map.flatten(2).mT)  # [N, h*w, D]
