"""Looks of unfinished latents without the decoder, which the device has no time for meanwhile."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearDecoder:
    """The affine map from a latent pixel to its block of the picture that fits known pairs best.

    Exact for latents that are rearranged pixels; a blurred likeness for those of a VAE, whose
    latent pixels mostly hold their block's colour. weights: [C + 1, p * p * 3], the last row the
    offset, for p x p blocks of values in [0, 1].
    """

    weights: np.ndarray
    block: int

    @classmethod
    def fit(cls, latents: np.ndarray, images: np.ndarray) -> LinearDecoder:
        """Least squares over all positions.

        latents: [N, h, w, C], as the decoder takes them; images: [N, p h, p w, 3] in [0, 1].
        """
        count, height, width, channels = latents.shape
        block = images.shape[1] // height
        blocks = images.reshape(count, height, block, width, block, 3).swapaxes(2, 3)
        flat = latents.reshape(-1, channels).astype(np.float64)
        inputs = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
        outputs = blocks.reshape(len(flat), -1).astype(np.float64)
        # A white corner of all pictures says nothing about other colours: small values are noise
        weights = np.linalg.lstsq(inputs, outputs, rcond=1e-4)[0]
        return cls(weights.astype(np.float32), block)

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        """Pictures uint8 [M, p h, p w, 3] of latents [M, h, w, C]."""
        count, height, width, _ = latents.shape
        p = self.block
        blocks = latents.astype(np.float32) @ self.weights[:-1] + self.weights[-1]
        pictures = blocks.reshape(count, height, width, p, p, 3).swapaxes(2, 3)
        pictures = pictures.reshape(count, height * p, width * p, 3)
        return np.round(np.clip(pictures, 0, 1) * 255).astype(np.uint8)
