"""Generates new views from pictures with cameras, in the style of a diffusers pipeline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import einops
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from transformers import ConvNextV2Model

from escherjax.errors import UserError
from escherjax.pytorch import folder
from escherjax.pytorch.attention import check_cape_is_set, set_cape
from escherjax.pytorch.cameras import ViewPoses, checked_c2w, view_poses
from escherjax.pytorch.encoder import encode_tokens
from escherjax.pytorch.images import read_images


class EscherNetPipeline(DiffusionPipeline):
    """EscherNet (arXiv 2402.03908): stock networks, joined over views by CaPE attention.

    Images inside are channels first, as in PyTorch: [views, channels, height, width].

    Args:
        unet: of diffusers; gets our attention processors.
        image_encoder: of transformers.
        scheduler: of diffusers.
        vae: of diffusers; None where latents are patches of pixels.
        facts: content of escherjax.json, of which "cape" (required), "resolution" and "latents"
            are read, by default those of published weights.
    """

    _optional_components = ["vae"]
    model_cpu_offload_seq = "image_encoder->unet->vae"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        image_encoder: ConvNextV2Model,
        scheduler: DDIMScheduler,
        vae: AutoencoderKL | None = None,
        facts: dict[str, Any] | None = None,  # diffusers takes what has no default for a network
    ):
        super().__init__()
        self.register_modules(unet=unet, image_encoder=image_encoder, scheduler=scheduler, vae=vae)
        self.facts = {**folder.PUBLISHED_FACTS, "cape": None, **(facts or {})}
        if (vae is None) == (self.patch is None):
            raise UserError(
                f"vae is {type(vae).__name__} but latents are {self.facts['latents']}; expected a "
                "VAE for latents of one, and none for pixels."
            )
        channels, side = unet.config.in_channels, self.facts["resolution"]
        if self.patch and channels != 3 * self.patch**2:
            raise UserError(
                f"the U-Net has {channels} channels, but patches of {self.patch} x {self.patch} "
                f"pixels have {3 * self.patch**2}; correct latents in {folder.FACTS_FILE}."
            )
        if side % self.reduction:
            raise UserError(
                f"resolution must be a multiple of {self.reduction}, by which latents shrink an "
                f"image, got {side}. Correct {folder.FACTS_FILE}."
            )
        set_cape(unet, self.cape)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        cape: str | None = None,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
    ) -> EscherNetPipeline:
        """Loads a local pipeline folder, exported or of the published layout; safetensors only.

        Args:
            pretrained_model_name_or_path: the folder.
            cape: camera encoding "6dof", "4dof", "4dof_paper" or "none"; None takes the one in
                escherjax.json, or else "6dof" or "4dof" from the folder's name.
            torch_dtype: the networks compute in it; cameras stay float32.
            variant: as in diffusers, such as "fp16".

        Raises:
            UserError: lists everything that is missing or does not fit.
        """
        parts = folder.read_folder(pretrained_model_name_or_path, cape, torch_dtype, variant)
        return cls(**parts)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Writes the folder as diffusers does, and the facts that loading it again needs."""
        folder.write_facts(save_directory, self.facts)
        super().save_pretrained(save_directory, **options)

    @property
    def cape(self) -> str:
        """The camera encoding; see `escherjax.pytorch.attention`."""
        return self.facts["cape"]

    @property
    def patch(self) -> int | None:
        """Side in pixels of the patches that are latents; None where a VAE makes them."""
        return self.facts["latents"].get("patch")

    @property
    def reduction(self) -> int:
        """How many pixels of a side become one latent position."""
        return self.patch or 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        reference_cameras: Any,
        target_cameras: Any,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        seed: int = 0,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Generates new views of one scene, all targets jointly.

        Args:
            images: [N, H, H, 3] float in [0, 1] of any size, or a list of PIL images or paths
                (turned upright by their EXIF orientation, composited on white, cropped to the
                central square, resized).
            reference_cameras: [N, 4, 4] camera-to-world, OpenCV axes, an array, a tensor or an
                object that has them as `c2w`.
            target_cameras: [M, 4, 4], likewise.
            num_inference_steps: of the scheduler.
            guidance_scale: 1 or less means none.
            generator: draws the first latents; None makes one from `seed`, the same on every
                device.
            seed: see `generator`.
            latents: the first latents themselves, [M, C, h, w] standard normal; their sides give
                the resolution.
            output_type: "pil", "np" ([M, R, R, 3] float32 in [0, 1]), "pt" ([M, 3, R, R]) or
                "latent" ([M, C, h, w], scaled).

        Returns:
            The views as `.images`.

        Raises:
            UserError: an argument cannot be used.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise UserError(
                f"output_type must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}."
            )
        if not isinstance(guidance_scale, (int, float)) or not math.isfinite(guidance_scale):
            raise UserError(f"guidance_scale must be a finite number, got {guidance_scale!r}.")
        device = self._execution_device
        pixels = read_images(images, self.facts["resolution"]).to(device)
        reference_c2w = _scene_c2w(reference_cameras, "reference cameras")
        target_c2w = _scene_c2w(target_cameras, "target cameras")
        if len(pixels) != reference_c2w.shape[1]:
            raise UserError(
                f"{len(pixels)} reference images but {reference_c2w.shape[1]} reference cameras; "
                "expected one camera for each image."
            )
        latents = self._first_latents(latents, target_c2w.shape[1], generator, seed)
        timesteps = self._timesteps(num_inference_steps)

        tokens = self.encode_images(pixels)[None]  # [1, N, L, D]
        targets = view_poses(self.cape, target_c2w, device)
        references = view_poses(self.cape, reference_c2w, device)
        guided = guidance_scale > 1
        if guided:  # the unconditional half comes first; it sees the cameras but zero tokens
            tokens = torch.cat([torch.zeros_like(tokens), tokens])
            targets, references = targets.repeat_scenes(2), references.repeat_scenes(2)
        for t in self.progress_bar(timesteps):
            both = torch.cat([latents, latents]) if guided else latents
            prediction = self._predict(both, t, tokens, targets, references)
            if guided:
                uncond, cond = prediction.chunk(2)
                prediction = uncond + guidance_scale * (cond - uncond)
            latents = self.scheduler.step(prediction, t, latents).prev_sample
        if output_type == "latent":
            self.maybe_free_model_hooks()
            return ImagePipelineOutput(images=latents)
        decoded = self.decode_latents(latents / self._latent_scale)
        self.maybe_free_model_hooks()
        # The processor's own step is x / 2 + 1/2, clamped to [0, 1].
        views = VaeImageProcessor().postprocess(decoded, output_type=output_type)
        return ImagePipelineOutput(images=views)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Reference tokens [N, L, D] of images [N, 3, H, W] in [-1, 1], in the encoder's dtype."""
        return encode_tokens(self.image_encoder, images)

    def encode_latents(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, log variance), each float32 [N, C, h, w], of images [N, 3, H, W] in [-1, 1].

        Before the scaling factor. Pixels are exact: their log variance is minus infinity.
        """
        if self.patch:
            mean = einops.rearrange(
                images.float(), "n c (h p) (w q) -> n (p q c) h w", p=self.patch, q=self.patch
            )
            return mean, torch.full_like(mean, -torch.inf)
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return posterior.mean.float(), posterior.logvar.float()

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Images float32 [M, 3, H, W], not clipped, of latents [M, C, h, w] divided by the factor.

        One view at a time: the decoder's memory would otherwise bound the number of views.
        """
        if self.patch:
            return einops.rearrange(
                latents.float(), "m (p q c) h w -> m c (h p) (w q)", p=self.patch, q=self.patch
            )
        views = [self.vae.decode(z).sample for z in latents.to(self.vae.dtype).split(1)]
        return torch.cat(views).float()

    def predict_noise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        tokens: torch.Tensor,
        reference_cameras: Any,
        target_cameras: Any,
    ) -> torch.Tensor:
        """The U-Net's output, float32 [B, M, C, h, w]: noise, v or sample, as it was trained.

        latents: [B, M, C, h, w]; timesteps: [B]; tokens: [B, N, L, D]; cameras: camera-to-world
        [B, N, 4, 4] and [B, M, 4, 4], OpenCV axes.
        """
        targets, references = (
            view_poses(self.cape, getattr(cameras, "c2w", cameras), latents.device)
            for cameras in (target_cameras, reference_cameras)
        )
        times = timesteps.repeat_interleave(latents.shape[1])  # [B*M]
        out = self._predict(latents.flatten(0, 1), times, tokens, targets, references)
        return out.unflatten(0, latents.shape[:2])

    def _predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        tokens: torch.Tensor,
        targets: ViewPoses,
        references: ViewPoses,
    ) -> torch.Tensor:
        """[B*M, C, h, w] latents, tokens [B, N, L, D] -> float32 prediction [B*M, C, h, w]."""
        check_cape_is_set(self.unet)
        return self.unet(
            latents.to(self.unet.dtype),
            timesteps,
            tokens.flatten(1, 2).to(self.unet.dtype),  # [B, N*L, D]
            cross_attention_kwargs={"target_poses": targets, "reference_poses": references},
        ).sample.float()

    @property
    def _latent_scale(self) -> float:
        return 1.0 if self.patch else self.vae.config.scaling_factor

    def _first_latents(
        self,
        latents: torch.Tensor | None,
        num_targets: int,
        generator: torch.Generator | None,
        seed: int,
    ) -> torch.Tensor:
        side = self.facts["resolution"] // self.reduction
        shape = (num_targets, self.unet.config.in_channels, side, side)
        device = self._execution_device
        if latents is None:
            generator = generator or torch.Generator("cpu").manual_seed(seed)
            return randn_tensor(shape, generator, device, torch.float32)
        latents = torch.as_tensor(latents, dtype=torch.float32, device=device)
        if latents.ndim != 4 or latents.shape[:2] != shape[:2]:
            raise UserError(
                f"latents must have shape {shape} (sides may differ), got {tuple(latents.shape)}."
            )
        return latents

    def _timesteps(self, num_inference_steps: int) -> torch.Tensor:
        trained = self.scheduler.config.num_train_timesteps
        if type(num_inference_steps) is not int or not 1 <= num_inference_steps <= trained:
            raise UserError(
                f"num_inference_steps must be an integer, 1 to {trained}, got "
                f"{num_inference_steps!r}."
            )
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        if self.scheduler.timesteps.max() >= trained:
            raise UserError(
                f"{num_inference_steps} steps would start at timestep "
                f"{int(self.scheduler.timesteps.max())} of {trained}; take fewer steps."
            )
        return self.scheduler.timesteps


def _scene_c2w(cameras: Any, name: str) -> torch.Tensor:
    """Checked camera-to-world matrices of one scene, [1, V, 4, 4] float64."""
    c2w = checked_c2w(cameras, name)
    if c2w.ndim != 3:
        raise UserError(f"{name} must be [views, 4, 4], got shape {tuple(c2w.shape)}.")
    return c2w[None]
