"""Background removal by rembg, which runs published matting networks with ONNX Runtime.

Its model files come from the network at first use, or from a file that the user names. Nothing is
sent anywhere: models that rembg reaches over the network are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from escherjax.errors import UserError

DEFAULT_MODEL = "u2net"

# They need prompts, or cut out clothes
_OTHER_TASKS = ("sam", "u2net_cloth_seg")

# Picture uint8 [H, W, 3] -> alpha uint8 [H, W].
Matting = Callable[[np.ndarray], np.ndarray]


def open_matting(text: str) -> Matting:
    """Opens a model that finds the alpha of an opaque picture.

    Args:
        text: name of one of rembg's models, or NAME:FILE with that model's ONNX file, which is then
            not downloaded.

    Returns:
        A function of a uint8 [H, W, 3] picture, giving uint8 [H, W].

    Raises:
        UserError: rembg is missing, the model is unknown, or its file cannot be had or read.
    """
    name, _, file = text.partition(":")
    sessions = _sessions()
    if name not in sessions:
        raise UserError(
            f"matting model {name!r} is unknown; known: {', '.join(sorted(sessions))}; or give "
            "NAME:FILE with its ONNX file."
        )
    kind = sessions[name]
    if file:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"matting model {path} not found; expected the ONNX file of {name}.")
        local = classmethod(lambda cls, *args, **kwargs: str(path.resolve()))
        kind = type(kind.__name__, (kind,), {"download_models": local})

    import onnxruntime

    try:
        session = kind(name, onnxruntime.SessionOptions(), **({"model_path": file} if file else {}))
    except Exception as error:  # of the network, of the file or of ONNX Runtime: no common kind
        reason = str(error).strip().splitlines() or [type(error).__name__]
        advice = f"Where there is no network, name its file: {name}:FILE."
        if file:
            advice = f"Expected the ONNX file of {name}."
        raise UserError(
            f"matting model {text!r} cannot be opened ({reason[0][:300]}). {advice}"
        ) from error

    def find_alpha(picture: np.ndarray) -> np.ndarray:
        masks = session.predict(Image.fromarray(picture))
        return np.asarray(masks[0].convert("L").resize(picture.shape[1::-1]))

    return find_alpha


def _sessions() -> dict[str, Any]:
    """rembg's models that run here and find an object by themselves, by name."""
    try:
        import onnxruntime  # noqa: F401  rembg ends the process where it is missing
        import rembg  # noqa: F401
        from rembg.sessions import sessions_class
    except ImportError as error:
        raise UserError(
            f"removing a background needs rembg ({error}): pip install 'escherjax[matting]'. Or "
            "give the object's mask, or a picture with transparency."
        ) from error
    return {
        kind.name(): kind
        for kind in sessions_class
        if kind.name() not in _OTHER_TASKS and getattr(kind, "is_local", lambda: True)()
    }
