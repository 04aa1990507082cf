"""Numbers of views rounded up to few, so that few programs are compiled.

A program is compiled for one number of references N and one of targets M. Views added to reach the
next bucket are hidden from attention by masks, and the others come out as without them.
"""

from __future__ import annotations

import numpy as np

_REFERENCE_STEPS = 2  # buckets between two powers of two; a reference costs next to nothing
_TARGET_STEPS = 8  # a target is as dear as any other: at most an eighth more
_PUBLISHED = (25, 100, 200)  # what the published protocols draw: nothing to be padded


def reference_bucket(num_references: int) -> int:
    """The smallest of 1 2 3 4 6 8 12 16 24 32 ... that holds so many references (>= 1)."""
    return _round_up(num_references, _REFERENCE_STEPS)


def target_bucket(num_targets: int, view_devices: int = 1) -> int:
    """The smallest bucket that holds so many targets (>= 1).

    All numbers to 16, then 18 20 ... 32 36 ... 64 72 ... 128 and so on, and 25, 100 and 200, which
    the published protocols draw; of these the multiples of `view_devices`, the devices that share
    the targets.
    """
    size = num_targets
    if num_targets not in _PUBLISHED:
        size = _round_up(num_targets, _TARGET_STEPS)
    return size + -size % view_devices


def _round_up(count: int, steps: int) -> int:
    below = 1 << max((count - 1).bit_length() - 1, 0)  # the largest power of two below count
    step = max(below // steps, 1)
    return count + -count % step


def fill(views: np.ndarray, counts: np.ndarray | None, size: int) -> np.ndarray:
    """`size` views of each scene of [B, V, ...]: the last real one stands behind the real ones.

    counts: int [B], 1 to V, how many are real; None for V. Masks hide what is behind, but not NaN,
    so that it must be numbers.
    """
    if counts is None:
        counts = np.full(len(views), views.shape[1])
    indices = np.minimum(np.arange(size), counts[:, None] - 1)  # [B, size]
    return np.stack([scene[chosen] for scene, chosen in zip(views, indices, strict=True)])
