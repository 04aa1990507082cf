"""Small pictures of cases for the report: references, true views, samples, error maps.

One JSON file a case in `pictures/`, whose pictures are WebP data URIs, as the report embeds them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from escherjax.evaluate.protocol import Case
from escherjax.files import whole_file
from escherjax.reports import results

FOLDER = "pictures"
SIDE = 128  # pixels; smaller views keep their size
MAX_VIEWS = 8  # targets of a case, evenly spread over those scored
MAX_REFERENCES = 10
ERROR_OF_FULL_COLOR = 0.5  # mean absolute difference over RGB, 1 from black to white
_QUALITY = 82

# Dark to bright through purple, red and yellow, evenly in lightness.
_COLORS = np.array(
    [[0, 0, 4], [50, 10, 94], [120, 28, 109], [187, 55, 84], [237, 105, 37], [251, 180, 26],
     [252, 255, 164]], np.float32
)  # fmt: skip


def save(out: Path, case: Case, views: np.ndarray, scores: Sequence[results.Record]) -> None:
    """Writes the pictures of a case; views: [M, R, R, 3] uint8; scores: its records."""
    targets = case.scored if len(case.scored) else np.arange(len(views))
    chosen = targets[np.unique(np.linspace(0, len(targets) - 1, MAX_VIEWS).round().astype(int))]
    values = {row["view"]: row for row in scores if row["method"] == results.SAMPLES}
    fixed = {*results.FIELDS}
    shown = []
    for view in chosen.tolist():
        entry: dict[str, Any] = {"view": view, "sample": _uri(views[view])}
        if case.truth is not None:
            entry["truth"] = _uri(case.truth[view])
            entry["error"] = _uri(error_map(views[view], case.truth[view]))
        entry["scores"] = {k: v for k, v in values[view].items() if k not in fixed}
        shown.append(entry)
    content = {
        "scene": case.scene_id,
        "num_references": case.num_references,
        "references": [_uri(image) for image in case.reference_images[:MAX_REFERENCES]],
        "num_targets": len(targets),
        "side": views.shape[1],
        "targets": shown,
    }
    path = _path(out, case.scene_id, case.num_references)
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as file:
        file.write_text(json.dumps(content))


def load(out: Path, scene_id: str, num_references: int) -> dict[str, Any] | None:
    """What `save` wrote of a case, None if it wrote nothing."""
    path = _path(out, scene_id, num_references)
    return json.loads(path.read_text()) if path.exists() else None


def error_map(view: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The absolute difference of two pictures, averaged over RGB, as a colour: black for none.

    view, truth: [H, W, 3] uint8. Returns the same; from ERROR_OF_FULL_COLOR on the lightest.
    """
    difference = np.abs(view.astype(np.float32) - truth).mean(axis=-1) / 255  # [H, W]
    place = np.clip(difference / ERROR_OF_FULL_COLOR, 0, 1) * (len(_COLORS) - 1)
    steps = np.arange(len(_COLORS))
    channels = [np.interp(place, steps, channel) for channel in _COLORS.T]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _uri(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    if picture.width > SIDE:
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Small pictures are shown enlarged, where compression would be seen
    picture.save(buffer, "WEBP", quality=_QUALITY, lossless=picture.width < SIDE)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def safe_name(scene_id: str) -> str:
    """A file's name for any scene, no two of them alike."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", scene_id)[:60]
    return f"{readable}-{hashlib.sha256(scene_id.encode()).hexdigest()[:8]}"


def _path(out: Path, scene_id: str, num_references: int) -> Path:
    return out / FOLDER / f"{safe_name(scene_id)}.n{num_references:03d}.json"
