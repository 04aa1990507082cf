"""Pixels in place of a VAE: each patch of pixels becomes the channels of one latent position."""

from __future__ import annotations

import dataclasses

import einops
import jax

from escherjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """Space-to-depth of patches of `patch` x `patch` pixels; no parameters, and nothing is lost."""

    patch: int

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise UserError(f"PixelCodec patch is {self.patch}; it must be 1 or more.")

    @property
    def latent_channels(self) -> int:
        """Channels of a latent position: three colours of each pixel of the patch."""
        return 3 * self.patch**2

    def encode(self, images: jax.Array) -> jax.Array:
        """Moves patches into channels: [..., H, W, 3] -> [..., H/patch, W/patch, 3 patch^2].

        Raises UserError where a side is not a multiple of the patch.
        """
        height, width = images.shape[-3:-1]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"Images of {height} x {width} pixels cannot be cut into patches of {self.patch}; "
                f"sides must be multiples of it. Change the resolution or the patch."
            )
        return einops.rearrange(
            images, "... (h p) (w q) c -> ... h w (p q c)", p=self.patch, q=self.patch
        )

    def decode(self, latents: jax.Array) -> jax.Array:
        """Inverts `encode`: [..., h, w, 3 patch^2] -> [..., h*patch, w*patch, 3]."""
        if latents.shape[-1] != self.latent_channels:
            raise UserError(
                f"Latents have {latents.shape[-1]} channels; patches of {self.patch} pixels need "
                f"{self.latent_channels}."
            )
        return einops.rearrange(
            latents, "... h w (p q c) -> ... (h p) (w q) c", p=self.patch, q=self.patch
        )
