"""Estimates, by formula, how much memory sampling M views from N takes, before compiling anything.

It counts the arrays that must be alive together in the largest moment of each stage (encoding the
references, one denoising step, decoding the views), as the network is written, and adds the
parameters. The stages follow each other, so the largest counts. What a compiler fuses or copies
beyond that is not in it; docs/sampling.md has measured differences.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from escherjax.errors import UserError
from escherjax.models import attention
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.vae import VAE, PixelCodec

# Part of the free memory that a plan may count on: the estimate's error and fragments take the rest
_USABLE = 0.75

# Of plain attention, for each query, key and head: float32 logits, exponentials and softmax
_SCORE_BYTES = 12

_GIB = 2**30

log = logging.getLogger("escherjax.sample.plans")


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device while M targets are sampled from N conditioning views."""

    num_conditioning: int
    num_targets: int
    parameters: int  # as they are stored
    cast: int  # their copies in the compute dtype, where that is another
    encoding: int  # the arrays of each stage at its largest
    denoising: int
    decoding: int
    attention: int  # the part of denoising that is scores of attention; 0 for a fused kernel
    kernel: str  # of the widest self-attention

    @property
    def working(self) -> int:
        """What is needed beside the parameters themselves."""
        return self.cast + max(self.encoding, self.denoising, self.decoding)

    @property
    def total(self) -> int:
        return self.parameters + self.working

    def describe(self) -> str:
        """One line for people."""
        stages = {name: getattr(self, name) for name in ("encoding", "denoising", "decoding")}
        largest = max(stages, key=stages.__getitem__)
        scores = f", {self.attention / _GIB:.2f} of it scores" if largest == "denoising" else ""
        return (
            f"{self.total / _GIB:.2f} GiB estimated for {self.num_targets} views at once from "
            f"{self.num_conditioning}: parameters {(self.parameters + self.cast) / _GIB:.2f}, "
            f"{largest} {stages[largest] / _GIB:.2f} (attention by {self.kernel}{scores})"
        )


def estimate(
    model: EscherNet,
    params: Params,
    num_conditioning: int,
    num_targets: int,
    resolution: int,
    guidance_scale: float = 3.0,
    num_devices: int = 1,
) -> MemoryEstimate:
    """The memory of one pass; see `MemoryEstimate`.

    params: arrays or ShapeDtypeStructs. resolution: side in pixels of the views. guidance_scale:
    more than 1 doubles the rows of the network. num_devices: that share the targets.
    """
    unet, encoder = model.unet.config, model.encoder.config
    size = jnp.dtype(model.unet.dtype).itemsize
    local = -(-num_targets // num_devices)
    side = model.latent_shape(resolution)[0]
    tokens = num_conditioning * encoder.num_tokens
    cast = jax.tree.leaves({name: part for name, part in params.items() if name != "vae"})
    denoising, scores = _denoising(
        model, side, 2 if guidance_scale > 1 else 1, local, local * num_devices, tokens
    )
    # Keys and values of all cross-attentions, for each reference token
    layers = 2 * unet.layers_per_block + 1
    levels = zip(unet.block_channels, unet.attention, strict=True)
    cached = 2 * (sum(layers * c for c, attends in levels if attends) + unet.block_channels[-1])
    # The encoder's first stage is the widest: C twice, 4C twice
    encoding = (encoder.image_size // encoder.patch_size) ** 2 * encoder.widths[0] * (2 + 2 * 4)
    return MemoryEstimate(
        num_conditioning,
        num_targets,
        parameters=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)),
        cast=sum(leaf.size * size for leaf in cast if leaf.dtype.itemsize != size),
        encoding=num_conditioning * encoding * size,
        denoising=denoising + cached * tokens * size,
        decoding=local * _decoding(model.codec, resolution, size),
        attention=scores,
        kernel=_kernel(model, local * side * side, unet.block_channels[0]),
    )


def free_bytes() -> int | None:
    """Memory of the first local device that is free now; None where it is unknown.

    On a CPU what Linux calls available; other systems report only how much memory there is.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        meminfo = Path("/proc/meminfo")
        if meminfo.is_file():
            fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
            return int(fields["MemAvailable"].split()[0]) * 1024
        if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def largest_chunk(
    estimate_of: Callable[[int], MemoryEstimate], most: int, free: int | None = None
) -> int:
    """The most targets, up to `most`, whose estimate fits three quarters of the free memory.

    estimate_of: number of targets -> its estimate. free: bytes beside the parameters, which are
    there already; None asks `free_bytes`; where that is unknown all are taken to fit, and a
    warning is logged. Raises UserError if not one fits.
    """
    free = free_bytes() if free is None else free
    if free is None:
        log.warning(
            "this device does not report its free memory: all %d views are sampled at once; "
            "chunk (--chunk) sets how many at most",
            most,
        )
        return most
    low, high = 0, most  # the estimate grows with the number: bisect
    while low < high:
        middle = (low + high + 1) // 2
        fits = estimate_of(middle).working <= _USABLE * free
        low, high = (middle, high) if fits else (low, middle - 1)
    if low == 0:
        one = estimate_of(1)
        raise UserError(
            f"One view at a time from {one.num_conditioning} needs {one.working / _GIB:.2f} GiB "
            f"beside the parameters, and {_USABLE:.0%} of the free {free / _GIB:.2f} GiB can be "
            "counted on. Take fewer references, bfloat16, or a larger device."
        )
    return low


def _denoising(
    model: EscherNet, side: int, guided: int, local: int, views: int, reference_tokens: int
) -> tuple[int, int]:
    """(bytes alive in the U-Net's largest unit with the skips at that time, of these scores).

    guided: 2 for two predictions, else 1; local: views of a device, of `views` of all.
    """
    config, size = model.unet.config, jnp.dtype(model.unet.dtype).itemsize

    def alive(
        skips: int, pixels: int, channels_in: int, channels: int, attends: bool
    ) -> tuple[int, int]:
        row_bytes = guided * local * size
        resnet = skips + pixels * max(2 * channels_in + channels, channels_in + 3 * channels)
        if not attends:
            return resnet * row_bytes, 0
        # Gated feed-forward: values and gates 8C, their product 4C, two residuals
        feed_forward = skips + 14 * pixels * channels
        gathered = 2 * channels * pixels * (views - local) * guided * size
        scores = 0
        if _kernel(model, local * pixels, channels) == "xla":
            # Joint self-attention, or cross-attention, which the unconditional half does without
            keys = max(guided * views * pixels, reference_tokens)
            scores = _SCORE_BYTES * config.num_heads * local * pixels * keys
        kept = skips + 6 * pixels * channels  # two residuals, q, k, v and the result
        attention = kept * row_bytes + gathered + scores
        return max((max(resnet, feed_forward) * row_bytes, 0), (attention, scores))

    levels = []
    for channels, attends in zip(config.block_channels, config.attention, strict=True):
        levels.append((side * side, channels, attends))
        side = -(-side // 2)
    pixels, below, _ = levels[0]
    skips, units = [pixels * below], []  # both in values for one row
    for i, (pixels, channels, attends) in enumerate(levels):
        for _ in range(config.layers_per_block):
            units.append(alive(sum(skips), pixels, below, channels, attends))
            below = channels
            skips.append(pixels * channels)
        if i + 1 < len(levels):
            skips.append(levels[i + 1][0] * channels)
    units.append(alive(sum(skips), pixels, below, below, True))
    for pixels, channels, attends in reversed(levels):
        for _ in range(config.layers_per_block + 1):
            skip = skips.pop()
            units.append(alive(sum(skips), pixels, below + skip // pixels, channels, attends))
            below = channels
    return max(units)


def _kernel(model: EscherNet, num_queries: int, channels: int) -> str:
    heads = model.unet.config.num_heads
    queries = jax.ShapeDtypeStruct((1, num_queries, heads, channels // heads), model.unet.dtype)
    return attention.resolve_implementation(model.unet.attention_impl, queries)


def _decoding(codec: VAE | PixelCodec, resolution: int, size: int) -> int:
    """Bytes alive for one view in the decoder's largest unit."""
    if isinstance(codec, PixelCodec):
        return 2 * resolution**2 * 3 * 4
    widths = codec.config.block_channels[::-1]
    side, below = resolution // 2 ** (len(widths) - 1), widths[0]
    units = [side**4 * 4 + 6 * side**2 * below]  # attention of one head among all pixels
    for i, channels in enumerate(widths):
        units.append(side**2 * max(2 * below + channels, below + 3 * channels))
        below = channels
        if i + 1 < len(widths):
            side *= 2
            units.append(side**2 * 2 * channels + side**2 // 4 * channels)
    return max(units) * size
