"""PyTorch's .bin files, opened only by PyTorch's own restricted reader.

Unpickling can run any code. `torch.load(weights_only=True)` builds tensors and plain containers
only, and is sound from PyTorch 2.6 on (CVE-2025-32434).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from escherjax.weights.strict_json import shown

_SOUND_TORCH = (2, 6)

Entry = tuple[str, str, tuple[int, ...], Callable[[], np.ndarray]]


def list_tensors(path: Path, problems: list[str]) -> list[Entry]:
    """(name, type, shape, reader of the values) of each tensor in a .bin file.

    Types are in the words of safetensors where it has them. Empty, with the reason added to
    `problems`, where PyTorch is missing, too old, or refuses the file.
    """
    refusal = why_unreadable()
    if refusal:
        problems.append(f"{path}: {refusal}")
        return []
    import torch

    try:
        content = _load(path)
    except Exception as error:  # a damaged pickle makes its reader raise nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problems.append(f"{path}: PyTorch does not open it with weights_only=True ({reason})")
        return []
    if not isinstance(content, dict):
        problems.append(f"{path}: holds a {type(content).__name__}; needed tensors by name")
        return []
    words = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    found: list[Entry] = []
    for name, tensor in content.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            kind = type(tensor).__name__
            problems.append(f"{path}: {shown(name)} is a {kind}; needed a dense tensor by name")
            continue
        dtype = words.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        found.append((name, dtype, tuple(tensor.shape), _reader(tensor)))
    return found


def why_unreadable() -> str | None:
    """Why .bin files cannot be opened here, and what to do; None where they can."""
    if importlib.util.find_spec("torch") is None:
        return (
            "is a pickle, which could run any code; only PyTorch opens it safely, and PyTorch is "
            "not installed. Install it (pip install torch), or use a .safetensors file"
        )
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _SOUND_TORCH:
        return (
            f"is a pickle, which could run any code; PyTorch {torch.__version__} does not open it "
            "safely, 2.6 and later do. Upgrade it, or use a .safetensors file"
        )
    return None


def _load(path: Path) -> Any:
    import torch

    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # the form before PyTorch 1.6 cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _is_plain(value: Any) -> bool:
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _reader(tensor: Any) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        import torch

        # A copy: the tensor itself is the mapped file, and would change with it.
        copied = tensor.detach().clone(memory_format=torch.contiguous_format)
        if copied.dtype == torch.bfloat16:
            return copied.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return copied.numpy()

    return read
