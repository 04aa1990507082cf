"""Times the training step of a config on this machine and prints one JSON object.

    python -m benchmarks.train_step --config configs/6dof.py --config.batch_size=32

Without `--config.data.source=SHARDS` the batch is random and already on the device, so that data
loading is not in the time; with it, batches come from the loader, and the same step with one batch
that stays on the device ("resident") is timed behind it. The VAE encoding of the targets is inside,
unless `--config.data.latents=True`. Parameters are random: speed does not depend on them.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import harness
from escherjax.errors import run_command

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from escherjax.train.state import TrainState

Batches = Iterator[Any]  # of escherjax.data.batch.Batch
WARM_UP = 3  # steps that are not timed


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark; see --help."""
    parser = harness.config_parser(__doc__)
    steps_help = f"timed steps, after {WARM_UP} for warm-up (default %(default)s)"
    parser.add_argument("--steps", type=int, default=10, help=steps_help)
    parser.add_argument("--kernels", action="store_true", help="add the step's GPU kernels")
    arguments, config, overrides = harness.parse_config(parser, argv)
    head = {"config": arguments.config, "overrides": overrides}
    harness.print_result("train_step", head, measure(config, arguments.steps, arguments.kernels))


def measure(config: ConfigDict, num_steps: int, kernels: bool) -> dict[str, Any]:
    """Initialises, compiles and times the step; times in ms, memory in GiB."""
    import jax

    from escherjax.devices import chips
    from escherjax.models import eschernet
    from escherjax.train import checks, perf
    from escherjax.train.loop import enable_compilation_cache
    from escherjax.train.state import create_state
    from escherjax.train.step import make_train_step

    enable_compilation_cache()
    mesh = checks.training_mesh(config)
    model = eschernet.from_config(config)
    started = time.perf_counter()
    state = jax.block_until_ready(create_state(model, mesh, config))
    init_sec = time.perf_counter() - started
    harness.note(f"initialised in {init_sec:.1f} s")
    counts = config.num_references, config.num_targets
    flops = perf.train_step_flops(model, state, config, counts)
    batches = _loaded_batches(config, mesh) if config.data.source else _random_batches(config, mesh)
    step = make_train_step(model, mesh, config)
    started = time.perf_counter()
    state, metrics = step(state, next(batches))
    loss = float(metrics["loss"])
    first_step_sec = time.perf_counter() - started
    harness.note(f"first step after {first_step_sec:.1f} s, loss {loss:.4f}")
    state, times = _time_steps(step, state, batches, num_steps)
    median = statistics.median(times["step"])
    peak = chips.peak_flops()
    result = {
        **harness.machine(),
        "batch_size": config.batch_size,
        **harness.spread(times["step"], "step_ms"),
        **harness.spread(times["call"], "call_ms"),
        **harness.spread(times["drop"], "drop_ms"),
        "timed_steps": num_steps,
        "scenes_per_sec": config.batch_size / median,
        "target_views_per_sec": config.batch_size * config.num_targets / median,
        "data_wait_frac": sum(times["wait"]) / sum(times["step"]),
        "host_bound_frac": sum(times["idle"]) / sum(times["step"]),
        "model_tflop_per_step": flops / 1e12,
        "model_tflop_per_sec": flops / 1e12 / median,
        "mfu": flops / median / peak if peak else None,
        "peak_device_memory_gib": harness.peak_memory_gib(jax.local_devices()[:1]),
        "init_sec": init_sec,
        "first_step_sec": first_step_sec,
    }
    batch = next(batches)
    if config.data.source:
        state, times = _time_steps(step, state, itertools.repeat(batch), num_steps)
        result |= harness.spread(times["step"], "resident_step_ms")
        result["times_resident"] = median / statistics.median(times["step"])
    if not kernels:
        return result

    def step_once() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return result | harness.busiest_kernels(step_once)


def _time_steps(
    step: Callable[..., Any], state: TrainState, batches: Batches, count: int
) -> tuple[TrainState, dict[str, list[float]]]:
    """(state, seconds of each step after the warm-up, by what they went to).

    "step": from each step's end to the next's. Of these, "wait": until the batch was there;
    "call": handing the step to the device; "drop": letting the old state's arrays go; "idle": the
    device had nothing to do. As in training, a step is handed over before the one before it is
    done: handing thousands of arrays to several devices takes milliseconds, which are not in the
    time.
    """
    import jax

    from escherjax.train.perf import IdleTime

    times: dict[str, list[float]] = {name: [] for name in ("step", "wait", "call", "drop", "idle")}
    idle, pending = IdleTime(), None
    ended = time.perf_counter()
    for _ in range(WARM_UP + count):
        idle.seconds, started = 0.0, time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        idle.handing_over()
        new_state, metrics = step(state, batch)
        called = time.perf_counter()
        idle.handed_over(metrics["loss"])
        state = new_state
        del new_state
        dropped = time.perf_counter()
        jax.block_until_ready(pending)
        pending = metrics
        now = time.perf_counter()
        spent = (now - ended, got - started, called - got, dropped - called, idle.seconds)
        for name, seconds in zip(times, spent, strict=True):
            times[name].append(seconds)
        ended = now
    jax.block_until_ready(pending)
    idle.close()
    return state, {name: values[WARM_UP:] for name, values in times.items()}


def _loaded_batches(config: ConfigDict, mesh: Any) -> Batches:
    """Batches of the config's data, put on the devices."""
    from escherjax.train import sources

    for batch in sources.training_batches(sources.open_training_source(config), config, 0):
        yield batch.on_mesh(mesh)


def _random_batches(config: ConfigDict, mesh: Any) -> Batches:
    """One batch of noise for ever, on the devices."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from escherjax.cameras import from_spherical
    from escherjax.data.batch import Batch
    from escherjax.models import eschernet

    rng = np.random.default_rng(0)
    size, side = config.batch_size // jax.process_count(), config.resolution

    def views(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.integers(0, 256, (size, count, side, side, 3)).astype(np.uint8)
        polar, azimuth = rng.uniform(0.3, 2.8, (2, size, count))
        return images, from_spherical(polar, azimuth, rng.uniform(1.5, 2.2, (size, count)))

    (refs, ref_c2w), (targets, target_c2w) = views(config.num_references), views(config.num_targets)
    shown = {"target_images": targets}
    if config.data.latents:  # any numbers take as long
        shape = (*targets.shape[:2], *eschernet.moments_shape(config))
        shown = {"target_moments": rng.standard_normal(shape).astype(jnp.bfloat16)}
    batch = Batch(
        ref_images=refs,
        ref_c2w=ref_c2w,
        target_c2w=target_c2w,
        num_references=np.full(size, config.num_references, np.int32),
        valid=np.ones(size, np.float32),
        **shown,
    )
    return itertools.repeat(batch.on_mesh(mesh))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
