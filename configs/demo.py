"""A small EscherNet that trains on two CPU cores in minutes, on scenes rendered at start.

    python -m escherjax.train --config configs/demo.py --workdir runs/demo

`make demo` runs it and draws new views with the result.
"""

from pathlib import Path

from escherjax.config import config_from_file


def get_config(arg=""):
    c = config_from_file(Path(__file__).with_name("base.py"))(arg)
    if arg == "smoke":
        return c
    c.num_steps, c.batch_size, c.resolution = 1200, 8, 32
    c.num_references, c.num_targets = 3, 3
    c.dtype, c.guidance_scale = "float32", 1.0
    c.log_every_steps, c.checkpoint_every_steps = 50, 300
    c.sample_every_steps, c.eval_every_steps = 600, 1200
    c.unet.block_channels, c.unet.attention = (128,), (True,)
    c.unet.layers_per_block, c.unet.num_heads, c.unet.norm_groups = 1, 4, 32
    c.encoder.depths, c.encoder.widths = (2,), (128,)
    c.encoder.patch_size, c.encoder.image_size = 4, 32
    c.latents.kind, c.latents.patch = "pixels", 4
    c.diffusion.beta_schedule, c.diffusion.beta_start, c.diffusion.beta_end = "linear", 1e-4, 0.02
    c.diffusion.prediction_type = "sample"
    c.optimizer.peak_lr, c.optimizer.warmup_steps, c.optimizer.decay_steps = 2e-3, 100, 1200
    c.optimizer.max_grad_norm = 1.0
    c.ema.decay = 0.99
    c.data.source, c.data.num_scenes, c.data.num_views = "procedural", 2, 48
    c.data.with_replacement, c.data.background = False, "white"
    c.data.num_threads, c.data.prefetch = 2, 4
    c.eval.num_scenes, c.eval.batch_size, c.eval.num_sampling_steps = 4, 4, 20
    c.eval.num_references = (1, 3)
    return c
