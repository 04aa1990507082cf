"""An EscherNet of 47M parameters for 64 x 64 pixels, to learn from scratch on one GPU in minutes.

    python -m escherjax.train --config small --workdir runs/small

20,480 scenes are rendered at the start (4 GB of host memory); pixels stand in for the VAE, so that
everything is learned here. N is 1 to 4, at random for each scene.
"""

from ml_collections import ConfigDict

from escherjax.config import config_from_file


def get_config(arg: str = "") -> ConfigDict:
    c = config_from_file("base")(arg)
    if arg == "smoke":
        return c
    c.num_steps, c.batch_size, c.resolution = 5000, 64, 64
    c.num_references, c.min_references, c.num_targets = 4, 1, 4
    c.conditioning_dropout, c.guidance_scale = 0.05, 1.5
    c.log_every_steps = 100
    c.checkpoint_every_steps, c.sample_every_steps, c.eval_every_steps = 2500, 2500, 2500
    c.keep_checkpoints = 1
    c.unet.block_channels, c.unet.attention = (128, 256, 256), (False, True, True)
    c.encoder.depths, c.encoder.widths = (2, 2, 4), (96, 192, 384)
    c.encoder.patch_size, c.encoder.image_size = 2, 64
    c.latents.kind, c.latents.patch = "pixels", 2
    c.diffusion.beta_schedule, c.diffusion.beta_start, c.diffusion.beta_end = "linear", 1e-4, 0.02
    c.diffusion.prediction_type = "sample"
    c.optimizer.peak_lr, c.optimizer.warmup_steps, c.optimizer.decay_steps = 3e-4, 500, 5000
    c.optimizer.max_grad_norm = 1.0
    c.ema.decay = 0.999
    c.data.source, c.data.num_scenes, c.data.num_views = "procedural", 20_480, 12
    c.data.with_replacement, c.data.background = False, "white"
    c.eval.num_scenes, c.eval.batch_size = 64, 64
    c.eval.num_references = (1, 2, 3, 5, 10)
    return c
