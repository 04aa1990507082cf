"""Stored VAE moments: their fields in a record, and the file that says how they were made.

The moments of a view are mean and log variance of its latents before the scaling factor, side by
side in the last axis, rounded to bfloat16. They hold for one resolution, one background and one
VAE, which `latents.json` beside the shards names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from escherjax.data import remote
from escherjax.errors import UserError
from escherjax.files import whole_file

FILE_NAME = "latents.json"
FORMAT = 1
_NUMBER = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class MomentsInfo:
    """How the moments of a data set were made."""

    resolution: int  # side of the encoded pictures in pixels
    background: str  # as in `LoaderConfig`
    shape: tuple[int, int, int]  # (h, w, 2 C) of one view
    vae_sha256: str  # `vae_fingerprint` of the VAE
    dtype: str  # that it computed in
    made_by: str  # version of this package
    format: int = FORMAT  # of the file


def read_info(folder: str) -> MomentsInfo:
    """How the moments of a data set were made. folder: path or address.

    Raises UserError if it has no stored moments, or they were made by a newer version.
    """
    content = remote.read_file(folder, FILE_NAME)
    if content is None:
        raise UserError(
            f"{folder} holds no stored moments: it has no {FILE_NAME}. Make them with "
            "'python -m data_prep.latents', or set config.data.latents=False to encode pictures in "
            "every step."
        )
    try:
        fields = json.loads(content)
        info = MomentsInfo(**{**fields, "shape": tuple(map(int, fields["shape"]))})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{FILE_NAME} of {folder} cannot be used ({type(error).__name__}: {str(error)[:200]}); "
            "copy it again, or make it again by data_prep.latents."
        ) from error
    if info.format != FORMAT:
        raise UserError(
            f"{FILE_NAME} of {folder} has format {info.format}; this version reads {FORMAT}. "
            "Update escherjax, or make the moments again by data_prep.latents."
        )
    return info


def write_info(folder: Path, info: MomentsInfo) -> None:
    """Writes `latents.json`, whole or not at all."""
    content = {**dataclasses.asdict(info), "shape": list(info.shape)}
    with whole_file(folder / FILE_NAME) as file:
        file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def mismatches(
    info: MomentsInfo, resolution: int, background: str, shape: tuple[int, int, int]
) -> list[str]:
    """The settings in which moments differ from the pictures of a run; see MomentsInfo."""
    needed = {"resolution": resolution, "background": background, "shape": shape}
    return [
        f"{name} is {getattr(info, name)!r} there and {value!r} in this run"
        for name, value in needed.items()
        if getattr(info, name) != value
    ]


def check_vae(folder: str, fingerprint: str) -> None:
    """Raises UserError if the moments of a data set are of another VAE; see `vae_fingerprint`."""
    info = read_info(folder)
    if info.vae_sha256 != fingerprint:
        raise UserError(
            f"the stored moments of {folder} were made by another VAE (sha256 "
            f"{info.vae_sha256[:12]}..., this run's {fingerprint[:12]}...); make them by "
            "'python -m data_prep.latents --weights' with the weights of config.init."
        )


def vae_fingerprint(params: Mapping[str, Any]) -> str:
    """sha256 over the names, shapes and float32 values of a VAE's encoder and `quant_conv`.

    params: host arrays by name, nested. The decoder has no part in moments.
    """
    from flax import traverse_util

    digest = hashlib.sha256()
    for name, array in sorted(traverse_util.flatten_dict(dict(params), sep="/").items()):
        if name.startswith(("encoder/", "quant_conv/")):
            values = np.ascontiguousarray(array, np.dtype("<f4"))
            digest.update(f"{name} {values.shape}\n".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()


def record_features() -> dict[str, Any]:
    """The TFDS features that hold moments: the bytes of each view, and their shape."""
    from tensorflow_datasets import features as tfds_features

    return {
        "moments": tfds_features.Sequence(tfds_features.Tensor(shape=(), dtype=np.object_)),
        "moments_shape": tfds_features.Tensor(shape=(3,), dtype=np.int32),
    }


def to_fields(moments: np.ndarray | None) -> dict[str, Any]:
    """The fields of a record for moments [V, h, w, 2 C] bfloat16; none for None."""
    if moments is None:
        return {}
    return {
        "moments": [view.tobytes() for view in moments],
        "moments_shape": np.asarray(moments.shape[1:], np.int32),
    }


def from_fields(fields: Mapping[str, Any]) -> np.ndarray | None:
    """Moments [V, h, w, 2 C] bfloat16 of a record's fields; None where it has none.

    Raises ValueError if the fields do not fit together.
    """
    if "moments" not in fields:
        return None
    data = b"".join(fields["moments"])
    shape = (len(fields["moments"]), *fields["moments_shape"].tolist())
    return np.frombuffer(data, _NUMBER).reshape(shape)


def moments_faults(moments: np.ndarray | None, num_views: int) -> list[str]:
    """What keeps moments from being those of so many views; nothing if there are none."""
    if moments is None:
        return []
    if moments.dtype != _NUMBER or moments.ndim != 4 or len(moments) != num_views:
        return [
            f"moments must be bfloat16 ({num_views}, height, width, 2 x channels), got "
            f"{moments.dtype} {moments.shape}."
        ]
    if not np.isfinite(moments.astype(np.float32)).all():
        return ["has moments that are not finite."]
    return []
