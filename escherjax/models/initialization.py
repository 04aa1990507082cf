"""The first parameters of a network, drawn on the host tensor by tensor.

A tensor depends on (seed, its name) alone, so the same network starts from the same numbers on any
number of devices, and nothing has to be compiled for it: a traced initialisation of a network of
this size takes XLA minutes. The initialisers in the modules only tell shapes.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

import jax
import numpy as np

# Kernels that start at zero: a fresh residual branch adds nothing and a fresh U-Net predicts zero.
_ZERO_KERNELS = re.compile(
    r".*resnets_\d+/conv2|unet/.*proj_out|unet/conv_out|vae/.*attentions_\d+/to_out_0"
)


def draw_parameters(shapes: Any, seed: int) -> Any:
    """Numpy arrays for a tree of shapes {"unet", "image_encoder", "vae"}.

    Kernels are normal with variance 1 / fan-in (zero where a residual branch ends), norm scales
    one, all else zero.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _draw(
            jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, leaf.dtype, seed
        ),
        shapes,
    )


def _draw(name: str, shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    module, _, leaf = name.rpartition("/")
    if leaf == "scale":
        return np.ones(shape, dtype)
    if leaf != "kernel" or _ZERO_KERNELS.fullmatch(module):
        return np.zeros(shape, dtype)
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    values = generator.standard_normal(shape, np.float32)
    values *= 1.0 / math.sqrt(math.prod(shape[:-1]))
    return values.astype(dtype)
