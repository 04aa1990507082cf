"""Quality against steps for each sampler, on a run's held-out scenes; prints one JSON object.

    python -m benchmarks.samplers --weights runs/small --references 3 --steps 5,10,20,50

Every row draws the same views from the same noise. PSNR and SSIM (7 x 7) are means over views;
intervals are of 95%, bootstrapped over scenes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from escherjax.errors import UserError, run_command


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; see --help."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--weights", required=True, type=Path, help="work directory of a training run")
    add("--references", type=int, default=3, help="N (default %(default)s)")
    add("--steps", type=_numbers, default=[5, 10, 20, 50], metavar="I,J,...")
    add(
        "--samplers",
        type=lambda text: text.split(","),
        default=["ddim", "dpmpp_2m", "unipc"],
        metavar="A,B,...",
    )
    add("--guidance", type=float, help="scale; default: the config's")
    add("--num-scenes", type=int, help="default: the config's eval.num_scenes")
    arguments = parser.parse_args(argv)
    print(json.dumps({"benchmark": "samplers"} | measure(**vars(arguments)), indent=2))
    return 0


def measure(
    weights: Path,
    references: int,
    steps: Sequence[int],
    samplers: Sequence[str],
    guidance: float | None,
    num_scenes: int | None,
) -> dict[str, Any]:
    """Samples the held-out scenes in every way; seconds are of one call for all scenes."""
    import jax
    import numpy as np

    import escherjax
    from escherjax.cameras import Cameras
    from escherjax.metrics import psnr, ssim
    from escherjax.reports.summary import interval
    from escherjax.train import sources
    from escherjax.train.loop import enable_compilation_cache
    from escherjax.weights import runs

    enable_compilation_cache()
    pipe = escherjax.load(weights)
    config = runs.read_config(weights).copy_and_resolve_references()
    with config.unlocked():
        config.eval.num_references = (references,)
        config.eval.num_scenes = config.eval.batch_size = num_scenes or config.eval.num_scenes
    (batch,) = sources.heldout_batches(config)
    if guidance is None:
        guidance = config.guidance_scale
    truth = batch.target_images / np.float32(255)
    size, num_targets = truth.shape[:2]
    shape = (size, num_targets, *pipe.model.latent_shape(config.resolution))
    noise = jax.random.normal(jax.random.key(0), shape)
    generate = jax.jit(
        pipe.model.generate, static_argnames=("num_steps", "guidance_scale", "sampler")
    )
    rows = []
    for sampler in samplers:
        for count in steps:

            def draw(sampler: str = sampler, count: int = count) -> jax.Array:
                views = generate(
                    pipe.params,
                    batch.ref_images[:, :references] / np.float32(127.5) - 1,
                    Cameras(batch.ref_c2w[:, :references]),
                    Cameras(batch.target_c2w),
                    noise,
                    num_steps=count,
                    guidance_scale=guidance,
                    sampler=sampler,
                )
                return jax.block_until_ready(views)

            views = draw()
            started = time.perf_counter()
            draw()
            seconds = time.perf_counter() - started
            row = {"sampler": sampler, "steps": count, "seconds": seconds}
            for name, metric in (("psnr", psnr), ("ssim", ssim)):
                scores = np.asarray(metric(views, truth)).mean(axis=1)
                mean, low, high = interval(scores)
                row |= {name: float(mean), f"{name}_interval": [float(low), float(high)]}
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "weights": {"trained_steps": pipe.facts.trained_steps, "resolution": pipe.resolution},
        "scenes": size,
        "references": references,
        "targets": num_targets,
        "guidance": guidance,
        "rows": rows,
    }


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--steps {text!r}; needed numbers such as 5,10,50.") from error


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
