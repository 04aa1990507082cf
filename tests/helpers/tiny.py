"""The smallest training run that is still the whole program: seconds to compile on a CPU."""

from escherjax.config import load_config
from escherjax.train.checks import check_config

TINY = (
    "--config.resolution=16",
    "--config.num_steps=6",
    "--config.log_every_steps=1",
    "--config.checkpoint_every_steps=2",
    "--config.eval_every_steps=0",
    "--config.sample_every_steps=0",
    "--config.num_references=2",
    "--config.num_targets=2",
    "--config.unet.block_channels=(32,)",
    "--config.unet.attention=(True,)",
    "--config.encoder.depths=(1,)",
    "--config.encoder.widths=(32,)",
    "--config.encoder.patch_size=4",
    "--config.encoder.image_size=16",
    "--config.mesh.fsdp=1",
    "--config.data.num_scenes=16",
    "--config.data.num_views=6",
    "--config.eval.num_references=(2,)",
    "--config.eval.num_targets=2",
    "--config.eval.num_sampling_steps=2",
)


def tiny_arguments(**changes) -> list[str]:
    """Command-line overrides of the tiny run; `data__source=...` sets config.data.source."""
    return [
        *TINY,
        *(f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items()),
    ]


def tiny_config(file="configs/6dof.py:smoke", **changes):
    return load_config(file, tiny_arguments(**changes), check_config)


# Fields of a tiny VAE, for `tiny_config`.
VAE = {
    "latents__kind": "vae",
    "latents__vae__block_channels": "(8,8)",
    "latents__vae__layers_per_block": 1,
    "latents__vae__norm_groups": 4,
}
