"""Networks of random sizes with random parameters, none of them zero or at its default."""

import jax
import numpy as np

from escherjax.models.convnextv2 import ConvNeXtV2, ConvNeXtV2Config
from escherjax.models.diffusion.schedule import NoiseSchedule
from escherjax.models.eschernet import EscherNet
from escherjax.models.unet import UNet, UNetConfig
from escherjax.models.vae import VAE, PixelCodec, VAEConfig

SIDE = 16  # of latents


def random_model(seed, latents=None):
    """(model, params, resolution): everything that a pipeline folder can say is drawn.

    latents: "vae" or "pixels"; None draws that too.
    """
    rng = np.random.default_rng(seed)
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731

    heads, groups, num_levels = pick(1, 2, 4), pick(4, 8), pick(1, 2, 3)
    # Widths that every number of heads and groups divides, with heads wide enough for any CaPE.
    widths = tuple(int(w) for w in 32 * rng.integers(1, 3, num_levels))
    num_stages = pick(1, 2, 3)
    encoder = ConvNeXtV2Config(
        depths=tuple(int(d) for d in rng.integers(1, 3, num_stages)),
        widths=tuple(int(w) for w in 8 * rng.integers(1, 4, num_stages)),
        patch_size=pick(2, 4),
        image_size=16,
        final_norm_eps=pick(1e-12, 1e-6),
    )
    if (latents or pick("vae", "pixels")) == "vae":
        vae_levels = pick(1, 2)
        codec = VAE(
            VAEConfig(
                latent_channels=pick(3, 4),
                block_channels=tuple(int(w) for w in 8 * rng.integers(1, 3, vae_levels)),
                layers_per_block=pick(1, 2),
                norm_groups=pick(2, 4),
                scaling_factor=pick(0.18215, 1.0),
            )
        )
        channels, reduction = codec.config.latent_channels, 2 ** (vae_levels - 1)
    else:
        codec = PixelCodec(pick(1, 2, 4))
        channels, reduction = codec.latent_channels, codec.patch
    model = EscherNet(
        unet=UNet(
            UNetConfig(
                in_channels=channels,
                out_channels=channels,
                block_channels=widths,
                attention=tuple(bool(b) for b in rng.integers(0, 2, num_levels)),
                layers_per_block=pick(1, 2),
                num_heads=heads,
                cross_channels=encoder.widths[-1],
                norm_groups=groups,
            ),
            cape=pick("6dof", "4dof", "4dof_paper", "none"),
        ),
        encoder=ConvNeXtV2(encoder),
        codec=codec,
        schedule=NoiseSchedule.from_config(
            prediction_type=pick("epsilon", "v_prediction", "sample"),
            beta_schedule=pick("linear", "scaled_linear"),
            num_train_timesteps=pick(500, 1000),
        ),
    )
    resolution = SIDE * reduction
    return model, random_params(model.parameter_shapes(resolution), rng), resolution


def random_params(shapes, rng):
    """Kernels of variance 1 / fan-in, gains near 1, other values small; numpy float32."""

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "scale":
            return 1 + np.float32(0.1) * normal
        if path[-1].key == "kernel":
            return normal / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        return np.float32(0.1) * normal

    return jax.tree_util.tree_map_with_path(draw, shapes)
