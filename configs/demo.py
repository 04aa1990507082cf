"""A small EscherNet that learns one rendered scene by heart on two CPU cores, in five minutes.

    python -m escherjax.train --config demo --workdir runs/demo

`make demo` runs it and samples views of the scene from cameras that it was not trained on. One
scene is far too little to learn others: the held-out figures of this run are about other scenes,
and stay below copying the nearest reference. `small.py` is the size that learns to generalise.
"""

from ml_collections import ConfigDict

from escherjax.config import config_from_file


def get_config(arg: str = "") -> ConfigDict:
    c = config_from_file("base")(arg)
    if arg == "smoke":
        return c
    c.seed = 5  # scene 0 of this seed is a box with a colour for each side
    c.num_steps, c.batch_size, c.resolution = 2000, 2, 32
    c.num_references, c.num_targets = 3, 4
    c.dtype, c.guidance_scale = "float32", 1.0
    c.log_every_steps, c.checkpoint_every_steps = 20, 500
    c.sample_every_steps, c.eval_every_steps = 1000, 2000
    c.unet.block_channels, c.unet.attention = (128,), (True,)
    c.unet.layers_per_block, c.unet.num_heads, c.unet.norm_groups = 1, 4, 32
    c.encoder.depths, c.encoder.widths = (2,), (128,)
    c.encoder.patch_size, c.encoder.image_size = 4, 32
    c.latents.kind, c.latents.patch = "pixels", 4
    c.diffusion.beta_schedule, c.diffusion.beta_start, c.diffusion.beta_end = "linear", 1e-4, 0.02
    c.diffusion.prediction_type = "sample"
    c.optimizer.peak_lr, c.optimizer.warmup_steps, c.optimizer.decay_steps = 2e-3, 100, 2000
    c.optimizer.max_grad_norm = 1.0
    c.ema.decay = 0.99
    c.data.source, c.data.num_scenes, c.data.num_views = "procedural", 1, 64
    c.data.with_replacement, c.data.background = False, "white"
    c.data.num_threads, c.data.prefetch = 2, 4
    c.eval.num_scenes, c.eval.batch_size, c.eval.num_sampling_steps = 4, 4, 20
    c.eval.num_references = (1, 3)
    return c
