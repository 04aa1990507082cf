"""Times sampling with a config's network on this machine and prints one JSON object.

    python -m benchmarks.sample --config configs/6dof.py --references 3 --targets 25

One scene: the references are encoded, all targets sampled jointly, and decoded, as
`Pipeline.generate` does it, padding to the next bucket included; `--exact` pads no more than the
devices need. Parameters are random: speed does not depend on them. FLOPs are those of the views
asked for, without padding. The ceiling is a large matrix product on one device, timed here, times
the number of devices.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import harness
from escherjax.errors import run_command

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from escherjax.models.diffusion.sampling import Sampling
    from escherjax.models.eschernet import EscherNet

SETTINGS = ("references", "targets", "steps", "guidance", "view_parallel", "dtype", "exact")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark; see --help."""
    parser = harness.config_parser(__doc__)
    add = parser.add_argument
    add("--references", type=int, default=3, help="N (default %(default)s)")
    add("--targets", type=int, default=25, help="M (default %(default)s)")
    add("--steps", type=int, default=50, help="sampling steps (default %(default)s)")
    add("--guidance", type=float, default=3.0, help="scale, 1 for none (default %(default)s)")
    share_help = "devices that share the targets (default %(default)s)"
    add("--view-parallel", type=int, default=1, metavar="DEVICES", help=share_help)
    add("--dtype", default="bfloat16", help="compute (default %(default)s)")
    add("--exact", action="store_true", help="compile for these numbers of views, not for a bucket")
    add("--repeats", type=int, default=3, help="timed runs, after one (default %(default)s)")
    add("--kernels", action="store_true", help="add the GPU kernels that the time goes to")
    arguments, config, overrides = harness.parse_config(parser, argv, "--config.dtype={dtype}")
    head = {"config": arguments.config, "overrides": overrides}
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    harness.print_result("sample", head, settings, measure(config, arguments))


def measure(config: ConfigDict, arguments: argparse.Namespace) -> dict[str, Any]:
    """Initialises, compiles and times sampling; times in ms, memory in GiB."""
    import jax
    import numpy as np

    from escherjax.cameras import Cameras, from_spherical
    from escherjax.devices import chips
    from escherjax.devices import mesh as sharding
    from escherjax.models import eschernet
    from escherjax.sample.pipeline import Pipeline
    from escherjax.train.loop import enable_compilation_cache

    enable_compilation_cache()
    mesh = sharding.view_mesh(arguments.view_parallel)
    devices = list(mesh.devices.flat)
    model = eschernet.from_config(config)
    started = time.perf_counter()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.device_put(model.init(config.seed, config.resolution), everywhere)
    pipe = Pipeline(model, jax.block_until_ready(params), config.resolution, mesh=mesh)
    harness.note(f"initialised in {time.perf_counter() - started:.1f} s")

    rng = np.random.default_rng(0)
    num_references, num_targets = arguments.references, arguments.targets
    side = config.encoder.image_size
    images = rng.random((num_references, side, side, 3), np.float32)

    def cameras(count: int) -> Cameras:
        polar, azimuth = rng.uniform(0.3, 2.8, count), rng.uniform(-3, 3, count)
        return Cameras(from_spherical(polar, azimuth, rng.uniform(1.5, 2.2, count)))

    references, targets = cameras(num_references), cameras(num_targets)

    def generate() -> np.ndarray:
        if arguments.exact:
            batch = images[None], references[None], targets[None]
            return pipe.generate_batch(*batch, _sampling(arguments))
        return pipe.generate(images, references, targets, arguments.steps, arguments.guidance)

    (first_sec,) = harness.times(generate, 1)
    harness.note(f"first run after {first_sec:.1f} s")
    whole = harness.times(generate, arguments.repeats)
    latents = np.zeros((num_targets, *model.latent_shape(config.resolution)), np.float32)
    # On one device, and by programs of their own.
    encode = statistics.median(harness.times(lambda: pipe.encode_images(images), 3, warm_up=1))
    decode = statistics.median(harness.times(lambda: pipe.decode_latents(latents), 3, warm_up=1))
    median = statistics.median(whole)
    flops = _flops(model, params, config, arguments)
    ceiling = _measured_ceiling(arguments.dtype) * len(devices)
    peak = chips.peak_flops()
    if arguments.exact:
        compiled_for = [num_references, num_targets + -num_targets % len(devices)]
    else:
        compiled_for = [pipe.reference_bucket(num_references), pipe.target_bucket(num_targets)]
    result = {
        **harness.machine(devices),
        "compiled_for": compiled_for,
        **harness.spread(whole, "scene_ms"),
        "timed_runs": len(whole),
        "views_per_sec": num_targets / median,
        "ms_per_step": 1e3 * (median - encode - decode / len(devices)) / arguments.steps,
        "encode_ms": 1e3 * encode,
        "decode_ms": 1e3 * decode,
        "model_tflop": flops / 1e12,
        "model_tflop_per_sec": flops / 1e12 / median,
        "ceiling_tflop_per_sec": ceiling / 1e12,
        "mfu_of_ceiling": flops / median / ceiling,
        "mfu": flops / median / (peak / jax.device_count() * len(devices)) if peak else None,
        "peak_device_memory_gib": harness.peak_memory_gib(devices),
        "first_run_sec": first_sec,
    }
    return result | (harness.busiest_kernels(generate, repeats=1) if arguments.kernels else {})


def _sampling(arguments: argparse.Namespace) -> Sampling:
    from escherjax.models.diffusion.sampling import Sampling

    return Sampling(arguments.steps, arguments.guidance)


def _flops(
    model: EscherNet, params: Any, config: ConfigDict, arguments: argparse.Namespace
) -> float:
    """FLOPs of one scene's products and convolutions, without those of padding."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from escherjax.cameras import Cameras
    from escherjax.models import eschernet
    from escherjax.train import perf

    plain = dataclasses.replace(model, unet=model.unet.clone(attention_impl="xla"))
    side = config.encoder.image_size

    def array(count: int, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, count, *shape), jnp.float32)

    def generate(params: Any, images: Any, references: Any, targets: Any, latents: Any) -> Any:
        scenes = eschernet.SceneBatch(images, Cameras(references), Cameras(targets), latents)
        return plain.generate(params, scenes, _sampling(arguments))

    return perf.count_flops(
        generate,
        params,
        array(arguments.references, side, side, 3),
        array(arguments.references, 4, 4),
        array(arguments.targets, 4, 4),
        array(arguments.targets, *model.latent_shape(config.resolution)),
    )


def _measured_ceiling(dtype: str) -> float:
    """FLOP/s of a chain of large square products on the first device, the best of three."""
    import jax
    import jax.numpy as jnp

    size, length = (1024, 2) if jax.default_backend() == "cpu" else (8192, 32)
    key = jax.random.key(0)
    a = jax.random.normal(key, (size, size)).astype(dtype)

    @jax.jit
    def chain(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, length, lambda _, x: jnp.dot(x, a) * size**-0.5, a)

    fastest = min(harness.times(lambda: chain(a), 3, warm_up=1))
    return 2.0 * size**3 * length / fastest


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
