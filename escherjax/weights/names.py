"""Converts tensor names and layouts between PyTorch state dicts and our parameter trees.

A parameter's path is its PyTorch name with the indices of module lists joined by an underscore:
`down_blocks.0.attn1.to_out.0.weight` is `down_blocks_0/attn1/to_out_0/kernel`. Layouts:

  PyTorch                                  here
  weight [O, I]                            kernel [I, O]
  weight [O, I, kh, kw]                    kernel [kh, kw, I, O]
  weight [C] of a norm                     scale [C]
  weight, bias [1, 1, 1, C] of a GRN       weight, bias [1, 1, 1, C]
  bias                                     bias

The maps are one to one and only move elements, so that a round trip keeps every bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

Path = tuple[str, ...]

_LIST_ENTRY = re.compile(r"(.+)_(\d+)")
# Modules of the checkpoints whose own name ends in an underscore and a number.
_NUMBERED_NAMES = frozenset({"linear_1", "linear_2"})
_RESPONSE_NORM = "grn"  # ConvNeXt V2's global response normalisation

_OLD_RESPONSE_NORM_NAMES = {"gamma": "weight", "beta": "bias"}

# How the attention of early Stable Diffusion autoencoders names its projections.
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_ATTENTION_KERNEL = re.compile(r".*mid_block\.attentions\.\d+\.(to_[qkv]|to_out\.0)\.weight")


def path_from_torch(name: str, num_axes: int) -> Path:
    """Path in our tree of the tensor `name` with `num_axes` axes."""
    parts: list[str] = []
    for part in name.split("."):
        if part.isdigit() and parts:
            parts[-1] = f"{parts[-1]}_{part}"
        else:
            parts.append(part)
    if parts[-1] == "weight" and not _is_response_norm(parts):
        parts[-1] = "scale" if num_axes == 1 else "kernel"
    return tuple(parts)


def torch_from_path(path: Path) -> str:
    """PyTorch name of the parameter at `path` in our tree."""
    parts = []
    for part in path[:-1]:
        entry = None if part in _NUMBERED_NAMES else _LIST_ENTRY.fullmatch(part)
        parts.append(f"{entry[1]}.{entry[2]}" if entry else part)
    leaf = "weight" if path[-1] in ("kernel", "scale") else path[-1]
    return ".".join([*parts, leaf])


def array_from_torch(path: Path, array: np.ndarray) -> np.ndarray:
    """A PyTorch tensor in our layout; path is ours."""
    axes = np.argsort(_torch_axes(path, array.ndim))
    return np.asarray(array.transpose(axes), order="C")


def array_to_torch(path: Path, array: np.ndarray) -> np.ndarray:
    """One of our arrays in PyTorch's layout; path is ours."""
    return np.asarray(array.transpose(_torch_axes(path, array.ndim)), order="C")


def torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in PyTorch of our parameter at `path` of shape `shape`."""
    return tuple(shape[axis] for axis in _torch_axes(path, len(shape)))


def _torch_axes(path: Path, num_axes: int) -> tuple[int, ...]:
    """Our axis at each axis of the PyTorch tensor."""
    if path[-1] != "kernel":
        return tuple(range(num_axes))
    return {2: (1, 0), 4: (3, 2, 0, 1)}[num_axes]


def tree_from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our parameter tree of a PyTorch state dict (numpy arrays)."""
    flat = {}
    for name, array in tensors.items():
        path = path_from_torch(name, array.ndim)
        flat[path] = array_from_torch(path, array)
    return traverse_util.unflatten_dict(flat)


def torch_from_tree(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """PyTorch state dict (numpy arrays) of our parameter tree."""
    return {
        torch_from_path(path): array_to_torch(path, np.asarray(array))
        for path, array in traverse_util.flatten_dict(params).items()
    }


def torch_shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """PyTorch names and shapes of our parameter tree, arrays or `jax.ShapeDtypeStruct`s."""
    return {
        torch_from_path(path): torch_shape(path, tuple(leaf.shape))
        for path, leaf in traverse_util.flatten_dict(params).items()
    }


def without_wrappers(name: str) -> str:
    """A tensor's name without what torch.compile and (Distributed)DataParallel put before it.

    torch.compile's `_orig_mod` may stand before any module that was compiled by itself.
    """
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[:1] == ["module"]:
        del parts[0]
    return ".".join(parts)


def current_vae_name(name: str) -> str:
    """Renames an autoencoder tensor's old attention projections; other names are kept."""
    if ".attentions." not in name:
        return name
    return ".".join(_OLD_ATTENTION_NAMES.get(part, part) for part in name.split("."))


def current_encoder_name(name: str) -> str | None:
    """Renames an image encoder's tensor; None for the head of a classifier.

    Classifiers keep the encoder under a prefix, and files from before transformers 4.46 call the
    weight and bias of the response norms gamma and beta.
    """
    if name.startswith("classifier."):
        return None
    parts = name.removeprefix("convnextv2.").split(".")
    if _is_response_norm(parts):
        parts[-1] = _OLD_RESPONSE_NORM_NAMES.get(parts[-1], parts[-1])
    return ".".join(parts)


def older_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The other shape in which files hold the tensor `name` of today's `shape`; None: no other.

    The elements and their order are the same. The oldest autoencoders have 1x1 convolutions for
    the linear maps of their attention, and some response norms one axis for four.
    """
    if _VAE_ATTENTION_KERNEL.fullmatch(name):
        return (*shape, 1, 1)
    return shape[-1:] if _is_response_norm(name.split(".")) else None


def count_parameters(params: Any) -> int:
    """Number of elements of all arrays (or shapes) in a tree."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(params))


def _is_response_norm(parts: list[str]) -> bool:
    return len(parts) > 1 and parts[-2] == _RESPONSE_NORM
