"""EscherNet: the U-Net, the reference encoder and the latent space as one set of pure functions.

The parameters are a plain dict {"unet", "image_encoder", "vae"}; "vae" is empty where the latents
are space-to-depth pixels. Everything here is a function of (parameters, arrays) and can be jitted,
differentiated and sharded.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from escherjax import cape
from escherjax.cameras import Cameras
from escherjax.devices.spread import Spread
from escherjax.errors import UserError
from escherjax.models.convnextv2 import ConvNeXtV2, ConvNeXtV2Config
from escherjax.models.diffusion import samplers
from escherjax.models.diffusion import schedule as schedule_lib
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.diffusion.schedule import NoiseSchedule
from escherjax.models.initialization import draw_parameters
from escherjax.models.unet import UNet, UNetConfig
from escherjax.models.vae import VAE, PixelCodec, VAEConfig

Params = dict[str, Any]


@functools.lru_cache(maxsize=16)  # the full network takes seconds
def _parameter_shapes(
    unet: UNet,
    encoder: ConvNeXtV2,
    codec: VAE | PixelCodec,
    latent_shape: tuple[int, int, int],
    resolution: int,
) -> Params:
    key = jax.random.key(0)
    size = encoder.config.image_size

    def init() -> Params:
        cameras = Cameras(jnp.broadcast_to(jnp.eye(4), (1, 1, 4, 4)))
        poses = cape.poses(unet.cape, cameras)
        tokens = jnp.zeros((1, 1, 1, unet.config.cross_channels))
        latents = jnp.zeros((1, 1, *latent_shape))
        times = jnp.zeros((1,), jnp.int32)
        images = jnp.zeros((1, size, size, 3))
        params = {
            "unet": unet.init(key, latents, times, tokens, poses, poses)["params"],
            "image_encoder": encoder.init(key, images)["params"],
            "vae": {},
        }
        if isinstance(codec, VAE):
            images = jnp.zeros((1, resolution, resolution, 3))
            params["vae"] = codec.init(key, images)["params"]
        return params

    return jax.eval_shape(init)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SceneBatch:
    """B scenes of N reference and M target views, padded to one shape, with their noise.

    Masks hide what stands behind a scene's own numbers of views, but not NaN: it must be numbers.
    """

    images: Any  # [B, N, H, W, 3] in [-1, 1]; None where tokens are given beside the batch
    reference_cameras: Cameras  # c2w [B, N, 4, 4]
    target_cameras: Cameras  # c2w [B, M, 4, 4]
    latents: Any  # [B, M, h, w, C] standard normal: the noise that sampling starts from
    num_references: Any = None  # int [B], how many of the N are real; None for all
    num_targets: Any = None  # int [B], how many of the M are real; None for all
    seeds: Any = None  # uint32 [B], of the noise that eta adds; not needed without
    view_numbers: Any = None  # int32 [B, M], by which views get that noise

    def noise_of_steps(self) -> Callable[[jax.Array], jax.Array]:
        """Step number -> the noise that eta adds, [B, M, h, w, C], each view's its own."""
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(self.seeds)

        def of_view(key: jax.Array, step: jax.Array, view: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(key, step), view)
            return jax.random.normal(key, self.latents.shape[2:])

        of_scenes = jax.vmap(jax.vmap(of_view, (None, None, 0)), (0, None, 0))
        return lambda step: of_scenes(keys, step, self.view_numbers)


@dataclasses.dataclass(frozen=True)
class EscherNet:
    """The network's three parts, its noise schedule and its camera encoding; no arrays.

    spread: the devices that share a scene; None where each scene stays on one.
    """

    unet: UNet
    encoder: ConvNeXtV2
    codec: VAE | PixelCodec
    schedule: NoiseSchedule
    spread: Spread | None = None

    def spread_over(self, spread: Spread | None) -> EscherNet:
        """The same functions, computed by the devices of `spread` together."""
        return dataclasses.replace(
            self,
            unet=self.unet.clone(spread=spread),
            encoder=self.encoder.clone(spread=spread),
            codec=self.codec.clone(spread=spread) if isinstance(self.codec, VAE) else self.codec,
            spread=spread,
        )

    @property
    def cape(self) -> str:
        return self.unet.cape

    @property
    def reduction(self) -> int:
        """How many pixels of a side become one latent position."""
        if isinstance(self.codec, VAE):
            return 2 ** (len(self.codec.config.block_channels) - 1)
        return self.codec.patch

    @property
    def latent_scale(self) -> float:
        """Latents are multiplied by this before noise is added; pixels keep their range."""
        return self.codec.config.scaling_factor if isinstance(self.codec, VAE) else 1.0

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(h, w, C) of the latents of a square image of `resolution` pixels."""
        side = resolution // self.reduction
        return side, side, self.unet.config.in_channels

    def parameter_shapes(self, resolution: int) -> Params:
        """The parameter tree as ShapeDtypeStructs; `resolution` is any that the latents allow."""
        shapes = _parameter_shapes(
            self.unet, self.encoder, self.codec, self.latent_shape(resolution), resolution
        )
        return jax.tree.map(lambda shape: shape, shapes)  # dicts of its own

    def init(self, seed: int, resolution: int) -> Params:
        """First parameters as host arrays, the same on any number of devices."""
        return draw_parameters(self.parameter_shapes(resolution), seed)

    def encode_images(self, params: Params, images: jax.Array) -> jax.Array:
        """Tokens [..., L, D] of reference images [..., H, W, 3] in [-1, 1]."""

        def encode(encoder: Params, images: jax.Array) -> Any:
            return self.encoder.apply({"params": encoder}, images)

        return self._per_view(encode, params["image_encoder"], images)

    def encode_latents(self, params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance) [..., h, w, C] of images in [-1, 1], before the scaling factor."""

        def encode(vae: Params, images: jax.Array) -> Any:
            if isinstance(self.codec, VAE):
                return self.codec.apply({"params": vae}, images, method="encode")
            mean = self.codec.encode(images)
            return mean, jnp.full_like(mean, -jnp.inf)  # pixels are exact: no variance

        return self._per_view(encode, params["vae"], images)

    def decode_latents(self, params: Params, latents: jax.Array) -> jax.Array:
        """Images [..., H, W, 3] in about [-1, 1] of latents after division by the factor."""

        def decode(vae: Params, latents: jax.Array) -> Any:
            if isinstance(self.codec, VAE):
                return self.codec.apply({"params": vae}, latents, method="decode")
            return self.codec.decode(latents)

        return self._per_view(decode, params["vae"], latents)

    def _per_view(
        self, function: Callable[[Params, jax.Array], Any], params: Params, images: jax.Array
    ) -> Any:
        """`function` on [V, H, W, C] for images [..., H, W, C]: its outputs [..., *their own].

        Images [B, V, H, W, C] are shared by the devices of `spread` where V divides.
        """

        def run(params: Params, images: jax.Array) -> Any:
            out = function(params, images.reshape(-1, *images.shape[-3:]))
            return jax.tree.map(lambda x: x.reshape(*images.shape[:-3], *x.shape[1:]), out)

        spread = self.spread
        if spread is None or images.ndim != 5 or images.shape[1] % spread.num_view_shards:
            return run(params, images)
        return spread.over_views(run, (False, True))(params, images)

    def predict(
        self,
        params: Params,
        latents: jax.Array,
        timesteps: jax.Array,
        tokens: jax.Array,
        reference_cameras: Cameras,
        target_cameras: Cameras,
        num_references: jax.Array | None = None,
        num_targets: jax.Array | None = None,
    ) -> jax.Array:
        """The U-Net's output for noisy latents of B scenes (noise, v or x0, see the schedule).

        latents: [B, M, h, w, C]; timesteps: [B] int; tokens: [B, N, L, D]; cameras with
        c2w [B, N, 4, 4] and [B, M, 4, 4]; num_references, num_targets: [B] int, how many of the N
        and of the M are real, or None for all. Returns [B, M, h, w, C] float32.
        """

        return self._run_unet(
            {"params": params["unet"]},
            latents,
            cape.poses(self.cape, target_cameras),
            timesteps,
            tokens,
            cape.poses(self.cape, reference_cameras),
            num_references,
            num_targets,
            False,
        )

    def denoiser(
        self,
        params: Params,
        tokens: jax.Array,
        reference_cameras: Cameras,
        target_cameras: Cameras,
        num_references: jax.Array | None = None,
        num_targets: jax.Array | None = None,
        guided: bool = False,
    ) -> samplers.Predict:
        """`predict` for fixed views: (latents [B, M, h, w, C], timesteps [B]) -> prediction.

        What the references give to attention is computed once, here. guided: the prediction is
        [B, 2, M, h, w, C], for tokens of zero and for these; the former costs no cross-attention.
        """
        target_poses, ref_poses = (
            cape.poses(self.cape, cameras) for cameras in (target_cameras, reference_cameras)
        )
        # Kernels are rounded where they are used; here, it is not done at every step.
        unet = jax.tree_util.tree_map_with_path(
            lambda path, x: x.astype(self.unet.dtype) if path[-1].key == "kernel" else x,
            params["unet"],
        )
        variables = {"params": unet, **self.unet.reference_cache(unet, tokens, ref_poses)}
        shared = (tokens, ref_poses, num_references, num_targets)

        def predict(latents: jax.Array, timesteps: jax.Array) -> jax.Array:
            out = self._run_unet(variables, latents, target_poses, timesteps, *shared, guided)
            return out.reshape(latents.shape[0], 2, *latents.shape[1:]) if guided else out

        return predict

    def _run_unet(
        self, variables: Any, latents: jax.Array, target_poses: Any, *rest: Any
    ) -> jax.Array:
        """The U-Net, each device its own target views. rest: timesteps, tokens, ref_poses,
        num_references, num_targets, guided."""
        *arrays, guided = rest

        def run(
            variables: Any,
            latents: jax.Array,
            target_poses: Any,
            timesteps: jax.Array,
            tokens: jax.Array,
            ref_poses: Any,
            *numbers: jax.Array | None,
        ) -> Any:
            return self.unet.apply(
                variables, latents, timesteps, tokens, target_poses, ref_poses, *numbers, guided
            )

        if self.spread is not None:
            run = self.spread.over_views(run, (False, True, True, *(False,) * len(arrays)))
        return run(variables, latents, target_poses, *arrays)

    def generate(
        self,
        params: Params,
        scenes: SceneBatch,
        sampling: Sampling,
        on_step: samplers.OnStep | None = None,
    ) -> jax.Array:
        """New views [B, M, H, W, 3] float32 in [0, 1], all targets of a scene jointly.

        sampling: its seed is not used, since scenes hold the noise. on_step: see `samplers.sample`.
        """
        tokens = self.encode_images(params, scenes.images)
        latents = self.generate_latents(params, tokens, scenes, sampling, on_step)
        decoded = self.decode_latents(params, latents / self.latent_scale)
        return jnp.clip(decoded / 2 + 0.5, 0.0, 1.0)

    def generate_latents(
        self,
        params: Params,
        tokens: jax.Array,
        scenes: SceneBatch,
        sampling: Sampling,
        on_step: samplers.OnStep | None = None,
    ) -> jax.Array:
        """Latents [B, M, h, w, C], scaled; `generate` for tokens [B, N, L, D] of its images."""
        predict = self.denoiser(
            params,
            tokens,
            scenes.reference_cameras,
            scenes.target_cameras,
            scenes.num_references,
            scenes.num_targets,
            sampling.is_guided,
        )
        return samplers.sample(
            self.schedule,
            samplers.guide(predict, sampling),
            scenes.latents,
            sampling,
            scenes.noise_of_steps() if sampling.eta else None,
            on_step=on_step,
        )


def from_config(config: ConfigDict) -> EscherNet:
    """The network that a training config describes; see `configs/base.py` for the fields."""
    dtypes: Any = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
    if config.latents.kind == "vae":
        codec: VAE | PixelCodec = VAE(VAEConfig(**config.latents.vae), **dtypes)
        channels = config.latents.vae.latent_channels
    else:
        codec = PixelCodec(config.latents.patch)
        channels = codec.latent_channels
    unet = UNetConfig(
        in_channels=channels,
        out_channels=channels,
        cross_channels=config.encoder.widths[-1],
        **config.unet,
    )
    return EscherNet(
        unet=UNet(
            unet, cape=config.cape, remat=config.remat, attention_impl=config.attention, **dtypes
        ),
        encoder=ConvNeXtV2(ConvNeXtV2Config(**config.encoder), **dtypes),
        codec=codec,
        schedule=NoiseSchedule.from_config(**config.diffusion),
    )


def moments_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(h, w, 2 C) of the VAE moments of one view: mean and log variance side by side."""
    height, width, channels = from_config(config).latent_shape(config.resolution)
    return height, width, 2 * channels


def from_parts(
    unet: UNetConfig,
    encoder: ConvNeXtV2Config,
    latents: VAEConfig | PixelCodec,
    scheduler: dict[str, Any],
    cape_variant: str,
    dtype: Any,
) -> EscherNet:
    """The network that a pipeline folder's config files describe, computing in `dtype`.

    Raises UserError if the widths of latents or tokens are not the U-Net's.
    """
    pairs = [
        ("unet.in_channels", unet.in_channels, "latent channels", latents.latent_channels),
        ("unet.out_channels", unet.out_channels, "latent channels", latents.latent_channels),
        (
            "unet.cross_channels",
            unet.cross_channels,
            "the encoder's last width",
            encoder.widths[-1],
        ),
    ]
    problems = [f"{a} must be {b} = {y}, got {x}" for a, x, b, y in pairs if x != y]
    if problems:
        raise UserError(f"The networks do not fit together: {'; '.join(problems)}.")
    return EscherNet(
        unet=UNet(unet, cape=cape_variant, dtype=dtype),
        encoder=ConvNeXtV2(encoder, dtype=dtype),
        codec=latents if isinstance(latents, PixelCodec) else VAE(latents, dtype=dtype),
        schedule=schedule_lib.from_diffusers(scheduler),
    )
