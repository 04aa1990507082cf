"""Times the image metrics on this machine beside their usual implementations; prints JSON.

    python -m benchmarks.metrics --resolution 256 --images 16

Contenders take turns in one process, --repeats times, on pairs of uint8 pictures in memory; JAX's
arrays are copied to its device each time. The weights of LPIPS are random, which costs the same.
scikit-image and OpenCV work through the pictures one by one, as evaluation scripts do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from escherjax.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark; see --help."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resolution", type=int, default=256, help="pixels on a side")
    parser.add_argument("--images", type=int, default=16, help="pairs in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    for name, least in (("resolution", 31), ("images", 1), ("repeats", 1)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name}: needed at least {least}.")

    import jax

    rng = np.random.default_rng(0)
    shape = (arguments.images, arguments.resolution, arguments.resolution, 3)
    references = rng.integers(0, 256, shape, np.uint8)
    noise = rng.integers(-20, 21, shape, np.int16)
    images = np.clip(references + noise, 0, 255).astype(np.uint8)
    contenders = {**_ours(), **_theirs()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(arguments.repeats + 1):  # the first turn compiles, and is not counted
        for name, metric in contenders.items():
            start = time.perf_counter()
            metric(images, references)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    rates = {
        name: {
            "images_per_sec": round(arguments.images / statistics.median(times), 1),
            "slowest": round(arguments.images / max(times), 1),
            "fastest": round(arguments.images / min(times), 1),
        }
        for name, times in seconds.items()
    }
    print(
        json.dumps(
            {
                "device": jax.devices()[0].device_kind,
                "machine": platform.processor() or platform.machine(),
                "cores": len(os.sched_getaffinity(0)),
                "jax": jax.__version__,
                "images": arguments.images,
                "resolution": arguments.resolution,
                "repeats": arguments.repeats,
                "rates": rates,
            },
            indent=2,
        )
    )


Metric = Callable[[np.ndarray, np.ndarray], object]


def _ours() -> dict[str, Metric]:
    import jax.numpy as jnp

    from escherjax.metrics import lpips, psnr, ssim
    from escherjax.metrics.perceptual import STAGES, LpipsWeights, tensor_shapes

    rng = np.random.default_rng(0)
    metrics: dict[str, Metric] = {
        "psnr": lambda a, b: psnr(a, b).block_until_ready(),
        "ssim uniform": lambda a, b: ssim(a, b).block_until_ready(),
        "ssim gaussian": lambda a, b: ssim(a, b, "gaussian").block_until_ready(),
    }
    for net in STAGES:
        tensors = {
            name: jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])), jnp.float32)
            for name, shape in tensor_shapes(net).items()
        }
        weights = LpipsWeights(net, tensors)
        metrics[f"lpips {net}"] = lambda a, b, weights=weights: lpips(
            a, b, weights
        ).block_until_ready()
    return metrics


def _theirs() -> dict[str, Metric]:
    """OpenCV, scikit-image, and LPIPS in PyTorch; what is not installed is left out."""
    metrics: dict[str, Metric] = {}
    try:
        import cv2

        metrics["psnr, OpenCV"] = lambda a, b: [cv2.PSNR(*pair) for pair in zip(a, b, strict=True)]
    except ImportError as error:
        print(f"without OpenCV ({error})", file=sys.stderr)
    try:
        from skimage.metrics import structural_similarity

        def structural(a, b, **options):
            return [
                structural_similarity(*pair, channel_axis=-1, **options)
                for pair in zip(a, b, strict=True)
            ]

        metrics["ssim uniform, scikit-image"] = structural
        metrics["ssim gaussian, scikit-image"] = lambda a, b: structural(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    except ImportError as error:
        print(f"without scikit-image ({error})", file=sys.stderr)
    try:
        import torch

        from tests import torch_lpips

        for net in torch_lpips.TAPS:
            state = torch_lpips.random_backbone(net)
            widths = (64, 192, 384, 256, 256) if net == "alex" else (64, 128, 256, 512, 512)
            heads = [torch.ones(1, width, 1, 1) for width in widths]

            def distance(a, b, net=net, state=state, heads=heads):
                pair = (torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1 for x in (a, b))
                return torch_lpips.lpips(*pair, net, state, heads)

            metrics[f"lpips {net}, PyTorch"] = distance
    except ImportError as error:
        print(f"without PyTorch ({error})", file=sys.stderr)
    return metrics


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
