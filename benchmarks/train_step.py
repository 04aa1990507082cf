"""Times the training step of a config on this machine and prints one JSON object.

    python -m benchmarks.train_step --config configs/6dof.py --config.batch_size=32

The batch is random and already on the device, so that data loading is not in the time; the VAE
encoding of the targets is. Parameters are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

from escherjax.errors import run_command


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after 3 for warm-up")
    parser.add_argument("--kernels", action="store_true",
        help="add the GPU kernels that the step spends its time in")  # fmt: skip
    arguments, overrides = parser.parse_known_args(argv)

    import jax
    import numpy as np

    from benchmarks.kernels import busiest_kernels
    from escherjax.cameras import from_spherical
    from escherjax.config import load_config
    from escherjax.models import eschernet
    from escherjax.training import perf, sharding
    from escherjax.training.loop import enable_compilation_cache
    from escherjax.training.optimizer import make_optimizer
    from escherjax.training.state import create_state
    from escherjax.training.step import make_train_step

    config = load_config(arguments.config, overrides)
    enable_compilation_cache()
    mesh = sharding.make_mesh(config)
    model, optimizer = eschernet.from_config(config), make_optimizer(config.optimizer)
    started = time.perf_counter()
    state = jax.block_until_ready(create_state(model, optimizer, mesh, config))
    init_sec = time.perf_counter() - started
    print(f"initialised in {init_sec:.1f} s", file=sys.stderr, flush=True)
    flops = perf.train_step_flops(model, state.params, state.frozen, config)

    rng = np.random.default_rng(0)
    size, side = config.batch_size // jax.process_count(), config.resolution

    def views(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.integers(0, 256, (size, count, side, side, 3)).astype(np.uint8)
        polar, azimuth = rng.uniform(0.3, 2.8, (2, size, count))
        return images, from_spherical(polar, azimuth, rng.uniform(1.5, 2.2, (size, count)))

    (refs, ref_c2w), (targets, target_c2w) = views(config.num_references), views(config.num_targets)
    batch = sharding.put_batch(
        mesh,
        {
            "ref_images": refs,
            "target_images": targets,
            "ref_c2w": ref_c2w,
            "target_c2w": target_c2w,
            "num_references": np.full(size, config.num_references, np.int32),
            "valid": np.ones(size, np.float32),
        },
    )
    train_step = make_train_step(model, optimizer, config, mesh)
    started = time.perf_counter()
    state, metrics = train_step(state, batch)
    loss = float(metrics["loss"])
    compile_sec = time.perf_counter() - started
    print(f"first step after {compile_sec:.1f} s, loss {loss:.4f}", file=sys.stderr, flush=True)
    times = []
    for step in range(arguments.steps + 3):
        started = time.perf_counter()
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        if step >= 3:
            times.append(time.perf_counter() - started)
    kernels = {}
    if arguments.kernels:

        def step_once():
            nonlocal state
            state, metrics = train_step(state, batch)
            return metrics

        kernels = busiest_kernels(step_once)
    median = statistics.median(times)
    memory = jax.local_devices()[0].memory_stats() or {}
    peak = perf.peak_flops()
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "config": arguments.config,
                "overrides": list(overrides),
                "device": jax.devices()[0].device_kind,
                "num_devices": jax.device_count(),
                "jax": jax.__version__,
                "batch_size": config.batch_size,
                "step_ms_median": 1e3 * median,
                "step_ms_min": 1e3 * min(times),
                "step_ms_max": 1e3 * max(times),
                "timed_steps": len(times),
                "scenes_per_sec": config.batch_size / median,
                "target_views_per_sec": config.batch_size * config.num_targets / median,
                "model_tflop_per_step": flops / 1e12,
                "model_tflop_per_sec": flops / 1e12 / median,
                "mfu": flops / median / peak if peak else None,
                "peak_device_memory_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
                "init_sec": init_sec,
                "first_step_sec": compile_sec,
                **kernels,
            },
            indent=2,
        )
    )
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
