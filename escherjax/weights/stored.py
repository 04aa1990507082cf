"""How a pipeline folder was written, kept so that writing it again changes nothing but values."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class StoredFormat:
    """What a pipeline folder says beside the values of its tensors.

    model_index: fields of model_index.json, empty where the file is missing. configs: fields of
    each component's JSON file, {"unet", "vae", "image_encoder", "scheduler"}, as they stand there.
    dtypes: for "unet", "vae" and "image_encoder", today's PyTorch name of each tensor -> "F32",
    "F16" or "BF16", the type it is stored in.
    """

    model_index: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    dtypes: dict[str, dict[str, str]]
