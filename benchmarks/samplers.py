"""Quality against steps for each sampler, on a run's held-out scenes; prints one JSON object.

    python -m benchmarks.samplers --weights runs/small --references 3 --steps 5,10,20,50

Every row samples the same views from the same noise. PSNR and SSIM (7 x 7) are means over views;
intervals are of 95%, bootstrapped over scenes.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from escherjax.errors import run_command
from escherjax.models.diffusion.sampling import SAMPLERS


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark; see --help."""
    parser = harness.argument_parser(__doc__)
    add = parser.add_argument
    add("--weights", required=True, type=Path, help="work directory of a training run")
    add("--references", type=int, default=3, help="N (default %(default)s)")
    add("--steps", type=harness.positive_numbers, default=[5, 10, 20, 50], metavar="I,J,...")
    add("--samplers", type=lambda text: text.split(","), default=SAMPLERS, metavar="A,B,...")
    add("--guidance", type=float, help="scale; default: the config's")
    add("--num-scenes", type=int, help="default: the config's eval.num_scenes")
    harness.print_result("samplers", measure(parser.parse_args(argv)))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Samples the held-out scenes in every way; seconds are of one call for all scenes."""
    import jax
    import numpy as np

    import escherjax
    from escherjax.cameras import Cameras
    from escherjax.metrics import psnr, ssim
    from escherjax.models.diffusion.sampling import Sampling
    from escherjax.reports.summary import interval
    from escherjax.train import sources
    from escherjax.train.loop import enable_compilation_cache
    from escherjax.weights import runs

    enable_compilation_cache()
    pipe = escherjax.load(arguments.weights)
    config = runs.read_config(arguments.weights).copy_and_resolve_references()
    references = arguments.references
    with config.unlocked():
        config.eval.num_references = (references,)
        config.eval.num_scenes = arguments.num_scenes or config.eval.num_scenes
        config.eval.batch_size = config.eval.num_scenes
    (batch,) = sources.heldout_batches(config)
    guidance = config.guidance_scale if arguments.guidance is None else arguments.guidance
    truth = batch.target_images / np.float32(255)
    size, num_targets = truth.shape[:2]
    shape = (size, num_targets, *pipe.model.latent_shape(config.resolution))
    noise = jax.random.normal(jax.random.key(0), shape)
    generate = jax.jit(pipe.model.generate, static_argnames="sampling")

    def sample(sampling: Sampling) -> jax.Array:
        return generate(
            pipe.params,
            batch.ref_images[:, :references] / np.float32(127.5) - 1,
            Cameras(batch.ref_c2w[:, :references]),
            Cameras(batch.target_c2w),
            noise,
            sampling=sampling,
        )

    rows = []
    for sampler in arguments.samplers:
        for steps in arguments.steps:
            sampling = Sampling(steps, guidance, sampler=sampler)
            views = sample(sampling)
            (seconds,) = harness.times(functools.partial(sample, sampling), 1)
            row: dict[str, Any] = {"sampler": sampler, "steps": steps, "seconds": seconds}
            for name, metric in (("psnr", psnr), ("ssim", ssim)):
                scores = np.asarray(metric(views, truth)).mean(axis=1)
                mean, low, high = interval(scores)
                row |= {name: float(mean), f"{name}_interval": [float(low), float(high)]}
            rows.append(row)
            harness.note(json.dumps(row))
    return {
        **harness.machine(),
        "weights": {"trained_steps": pipe.facts.trained_steps, "resolution": pipe.resolution},
        "scenes": size,
        "references": references,
        "targets": num_targets,
        "guidance": guidance,
        "rows": rows,
    }


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
