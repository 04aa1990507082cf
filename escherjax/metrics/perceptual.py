"""LPIPS v0.1, the learned perceptual distance, on AlexNet or VGG-16.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018
(arXiv 1801.03924), equation 1: both pictures go through a network trained on ImageNet; at five
places its features are scaled to unit length at each pixel; squared differences, weighted by
channel and averaged over pixels, are added up. Constants and layers as in the package lpips 0.1.4.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from escherjax.errors import UserError
from escherjax.metrics.image import check_pair

# The package's ScalingLayer: ImageNet's mean and standard deviation for pixels in [-1, 1], rounded.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_NORM_EPS = 1e-10  # added to the length of a feature vector, not to its square


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution and the ReLU after it. index: its number in torchvision's `features`."""

    index: int
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its parameters in torchvision's state dict."""
        kernel = (self.out_channels, self.in_channels, self.kernel, self.kernel)
        name = f"features.{self.index}"
        return {f"{name}.weight": kernel, f"{name}.bias": (self.out_channels,)}


@dataclasses.dataclass(frozen=True)
class Stage:
    """Layers between two places where features are compared; pool: size of the max pooling before
    them, of stride 2 and dropping what is left over at the border, None without."""

    pool: int | None
    convs: tuple[Conv, ...]


STAGES = {
    "alex": (
        Stage(None, (Conv(0, 3, 64, kernel=11, stride=4, padding=2),)),
        Stage(3, (Conv(3, 64, 192, kernel=5, padding=2),)),
        Stage(3, (Conv(6, 192, 384),)),
        Stage(None, (Conv(8, 384, 256),)),
        Stage(None, (Conv(10, 256, 256),)),
    ),
    "vgg": (
        Stage(None, (Conv(0, 3, 64), Conv(2, 64, 64))),
        Stage(2, (Conv(5, 64, 128), Conv(7, 128, 128))),
        Stage(2, (Conv(10, 128, 256), Conv(12, 256, 256), Conv(14, 256, 256))),
        Stage(2, (Conv(17, 256, 512), Conv(19, 512, 512), Conv(21, 512, 512))),
        Stage(2, (Conv(24, 512, 512), Conv(26, 512, 512), Conv(28, 512, 512))),
    ),
}
SMALLEST = {"alex": 31, "vgg": 16}  # height and width that leave a pixel at the last stage


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LpipsWeights:
    """Parameters of LPIPS; see `lpips_weights.load_lpips`.

    net: "alex" or "vgg". tensors: float32, the names and shapes of `tensor_shapes(net)`.
    """

    net: str = dataclasses.field(metadata={"static": True})
    tensors: Mapping[str, jax.Array]


def head_name(stage: int) -> str:
    """Name of the channel weights of a stage, [1, C, 1, 1], in the state dict of lpips."""
    return f"lin{stage}.model.1.weight"


def head_shapes(net: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the linear heads of lpips."""
    return {
        head_name(number): (1, stage.convs[-1].out_channels, 1, 1)
        for number, stage in enumerate(STAGES[net])
    }


def backbone_shapes(net: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's parameters that LPIPS needs."""
    convs = (conv for stage in STAGES[net] for conv in stage.convs)
    return {name: shape for conv in convs for name, shape in conv.tensor_shapes.items()}


def tensor_shapes(net: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters of LPIPS on "alex" or "vgg"."""
    return {**backbone_shapes(net), **head_shapes(net)}


@functools.partial(jax.jit, static_argnames="batch_size")
def lpips(
    images: jax.Array, references: jax.Array, weights: LpipsWeights, batch_size: int = 16
) -> jax.Array:
    """LPIPS v0.1 of each image to its reference, 0 for equal ones; lower is closer.

    images, references: [..., H, W, 3], both uint8 or both floating point in [0, 1], at least 31
    pixels high and wide for AlexNet, 16 for VGG. weights: from `load_lpips`; they decide which of
    the two it is, and numbers of the two cannot be compared. batch_size: how many pairs pass
    through the network at once, which bounds memory; VGG takes about 70 MB a pair at 256 pixels.
    Products in full float32 on every platform. Returns [...] float32.
    Raises UserError for other shapes and types.
    """
    check_pair(images, references, f"lpips ({weights.net})", smallest=SMALLEST[weights.net])
    if batch_size < 1:
        raise UserError(f"lpips: batch_size must be at least 1, got {batch_size}.")
    leading = images.shape[:-3]
    x, y = (array.reshape(-1, *array.shape[-3:]) for array in (images, references))
    total = len(x)
    if total <= batch_size:
        return _distances(x, y, weights).reshape(leading)
    filled = -total % batch_size  # the last batch is filled up: one shape is one compilation
    batches = [
        jnp.pad(array, ((0, filled), (0, 0), (0, 0), (0, 0))).reshape(-1, batch_size, *x.shape[1:])
        for array in (x, y)
    ]
    values = jax.lax.map(lambda pair: _distances(pair[0], pair[1], weights), batches)
    return values.reshape(-1)[:total].reshape(leading)


def _network_input(images: jax.Array) -> jax.Array:
    """Pictures [B, H, W, 3] as the network was trained to take them."""
    if images.dtype == jnp.uint8:
        symmetric = images.astype(jnp.float32) / 127.5 - 1
    else:
        symmetric = 2 * images.astype(jnp.float32) - 1
    shift, scale = (jnp.float32(x).reshape(1, 1, 1, 3) for x in (_SHIFT, _SCALE))
    return (symmetric - shift) / scale


def _distances(x: jax.Array, y: jax.Array, weights: LpipsWeights) -> jax.Array:
    features = _network_input(jnp.concatenate([x, y]))  # [2B, H, W, 3]
    total = jnp.zeros(len(x))
    for number, stage in enumerate(STAGES[weights.net]):
        if stage.pool is not None:
            features = jax.lax.reduce_window(
                features,
                -jnp.inf,
                jax.lax.max,
                (1, stage.pool, stage.pool, 1),
                (1, 2, 2, 1),
                "VALID",
            )
        for conv in stage.convs:
            features = _conv_relu(features, conv, weights.tensors)
        length = jnp.sqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True))
        unit_x, unit_y = jnp.split(features / (length + _NORM_EPS), 2)
        head = weights.tensors[head_name(number)].reshape(1, 1, 1, -1)
        weighted = jnp.square(unit_x - unit_y) * head
        total += jnp.mean(jnp.sum(weighted, axis=-1), axis=(1, 2))
    return total


def _conv_relu(features: jax.Array, conv: Conv, tensors: Mapping[str, jax.Array]) -> jax.Array:
    made = jax.lax.conv_general_dilated(
        features,
        tensors[f"features.{conv.index}.weight"],
        (conv.stride, conv.stride),
        [(conv.padding, conv.padding)] * 2,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    bias = tensors[f"features.{conv.index}.bias"]
    return jax.nn.relu(made + bias.reshape(1, 1, 1, -1))
