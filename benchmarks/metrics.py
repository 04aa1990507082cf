"""Times the image metrics on this machine beside their usual implementations; prints JSON.

    python -m benchmarks.metrics --resolution 256 --images 16

Contenders take turns in one process, --repeats times, on pairs of uint8 pictures in memory; JAX's
arrays are copied to its device each time. The weights of LPIPS are random, which costs the same.
scikit-image and OpenCV work through the pictures one by one, as evaluation scripts do.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import harness
from escherjax.errors import UserError, run_command

Metric = Callable[[np.ndarray, np.ndarray], object]


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark; see --help."""
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--resolution", type=int, default=256, help="pixels on a side")
    parser.add_argument("--images", type=int, default=16, help="pairs in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    for name, lowest in (("resolution", 31), ("images", 1), ("repeats", 1)):
        if (value := getattr(arguments, name)) < lowest:
            raise UserError(f"--{name} must be at least {lowest}, got {value}.")

    rng = np.random.default_rng(0)
    shape = (arguments.images, arguments.resolution, arguments.resolution, 3)
    references = rng.integers(0, 256, shape, np.uint8)
    noise = rng.integers(-20, 21, shape, np.int16)
    images = np.clip(references + noise, 0, 255).astype(np.uint8)
    contenders = {**_ours(), **_theirs()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(arguments.repeats + 1):  # the first turn compiles, and is not counted
        for name, metric in contenders.items():
            elapsed = harness.times(functools.partial(metric, images, references), 1)
            seconds[name] += elapsed if turn else []
    rates = {
        name: harness.rates(times, arguments.images, "images_per_sec")
        for name, times in seconds.items()
    }
    harness.print_result("metrics", harness.machine(), vars(arguments), {"rates": rates})


def _ours() -> dict[str, Metric]:
    import jax.numpy as jnp

    from escherjax.metrics import lpips, psnr, ssim
    from escherjax.metrics.perceptual import STAGES, LpipsWeights, tensor_shapes

    rng = np.random.default_rng(0)
    metrics: dict[str, Metric] = {
        "psnr": psnr,
        "ssim uniform": ssim,
        "ssim gaussian": lambda a, b: ssim(a, b, "gaussian"),
    }
    for net in STAGES:
        tensors = {
            name: jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])), jnp.float32)
            for name, shape in tensor_shapes(net).items()
        }
        weights = LpipsWeights(net, tensors)
        metrics[f"lpips {net}"] = functools.partial(lpips, weights=weights)
    return metrics


def _theirs() -> dict[str, Metric]:
    """OpenCV, scikit-image, and LPIPS in PyTorch; what is not installed is left out."""
    metrics: dict[str, Metric] = {}
    for contenders in (_opencv, _scikit_image, _pytorch):
        try:
            metrics |= contenders()
        except ImportError as error:
            print(f"left out: {error}", file=sys.stderr)
    return metrics


def _opencv() -> dict[str, Metric]:
    import cv2

    return {"psnr, OpenCV": lambda a, b: [cv2.PSNR(*pair) for pair in zip(a, b, strict=True)]}


def _scikit_image() -> dict[str, Metric]:
    from skimage.metrics import structural_similarity

    def ssim(a: np.ndarray, b: np.ndarray, **options: Any) -> list[Any]:
        pairs = zip(a, b, strict=True)
        return [structural_similarity(*pair, channel_axis=-1, **options) for pair in pairs]

    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return {
        "ssim uniform, scikit-image": ssim,
        "ssim gaussian, scikit-image": lambda a, b: ssim(a, b, **gaussian),
    }


def _pytorch() -> dict[str, Metric]:
    import torch

    from tests.helpers import torch_lpips

    def metric(net: str) -> Metric:
        state = torch_lpips.random_backbone(net)
        widths = (64, 192, 384, 256, 256) if net == "alex" else (64, 128, 256, 512, 512)
        heads = [torch.ones(1, width, 1, 1) for width in widths]

        def distance(a: np.ndarray, b: np.ndarray) -> object:
            x, y = (torch.from_numpy(z).permute(0, 3, 1, 2) / 127.5 - 1 for z in (a, b))
            return torch_lpips.lpips(x, y, net, state, heads)

        return distance

    return {f"lpips {net}, PyTorch": metric(net) for net in torch_lpips.TAPS}


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
