"""Pictures of cases: small ones for the report, and with --save-views every view as a file.

`pictures/` has one JSON file a case: references, true views, samples and error maps as WebP data
URIs, which the report embeds. `views/SCENE/N3/` has all targets, 000.png, ..., with
`transforms.json`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from escherjax.data.formats.transforms import write_transforms
from escherjax.evaluate.protocol import Case
from escherjax.files import whole_file
from escherjax.reports import page, results, sheets
from escherjax.reports.results import CaseName

FOLDER = "pictures"
VIEWS = "views"
MAX_PAGE_BYTES = 24 * 2**20  # of all pictures in a report
SIDE = 128  # pixels; smaller views keep their size
MAX_VIEWS = 8  # targets of a case, evenly spread over those scored
MAX_REFERENCES = 10
ERROR_OF_FULL_COLOR = 0.5  # mean absolute difference over RGB, 1 from black to white
_QUALITY = 82
_KINDS = ("truth", "sample", "error")  # pictures of a target
_CAMERAS = "transforms.json"  # written last: where it is, all views are
_PLAIN = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,100}")

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


def gather(
    out: Path, per_count: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> tuple[dict[str, Any], list[str]]:
    """Everything that `save` wrote, up to MAX_PAGE_BYTES, as a page shows it.

    Args:
      out: folder of the evaluation.
      per_count: number of references -> scene -> mean of each metric.

    Returns:
      `images`, data URIs each once, and `scenes`, which name them by number; and the scenes that
      were left out for size.
    """
    numbers: dict[str, int] = {}
    scenes: list[dict[str, Any]] = []
    left_out: list[str] = []
    for scene in sorted({scene for of in per_count.values() for scene in of}):
        counts = [count for count in per_count if scene in per_count[count]]
        cases = {count: one for count in counts if (one := load(out, scene, int(count)))}
        if not cases:
            continue
        uris = sorted({uri for one in cases.values() for uri in _uris(one)} - numbers.keys())
        if sum(map(len, numbers)) + sum(map(len, uris)) > MAX_PAGE_BYTES:
            left_out.append(scene)
            continue
        numbers |= {uri: len(numbers) + i for i, uri in enumerate(uris)}
        shown = {n: _numbered(one, numbers, per_count[n][scene]) for n, one in cases.items()}
        scenes.append({"id": scene, "cases": shown})
    return {"images": list(numbers), "scenes": scenes}, left_out


def _uris(case: dict[str, Any]) -> list[str]:
    views = [target[kind] for target in case["targets"] for kind in _KINDS if kind in target]
    return case["references"] + views


def _numbered(
    case: dict[str, Any], numbers: Mapping[str, int], means: Mapping[str, float]
) -> dict[str, Any]:
    """The case with numbers in the place of pictures."""
    texts = [f"{page.TITLES[name]} {page.number(name, value)}" for name, value in means.items()]
    return {
        "side": case["side"],
        "num_targets": case["num_targets"],
        "means": " · ".join(texts),
        "references": [numbers[uri] for uri in case["references"]],
        "targets": [
            {key: numbers[value] if key in _KINDS else value for key, value in target.items()}
            for target in case["targets"]
        ],
    }


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


def save_views(out: Path, case: Case, views: np.ndarray, K: np.ndarray) -> None:
    """Writes all targets of a case; views: [M, R, R, 3] uint8, K: [M, 3, 3] in their pixels."""
    folder = views_folder(out, CaseName(case.scene_id, case.num_references))
    paths = sheets.save_images(folder, views)
    with whole_file(folder / _CAMERAS) as file:
        write_transforms(file, case.target_c2w, K, views.shape[1], [path.name for path in paths])


def has_views(out: Path, name: CaseName) -> bool:
    """Whether all of a case's views are there."""
    return (views_folder(out, name) / _CAMERAS).exists()


def views_folder(out: Path, name: CaseName) -> Path:
    """Where a case's views are: below the scene's name, if that is a plain relative path."""
    is_plain = all(_PLAIN.fullmatch(part) for part in name.scene_id.split("/"))
    scene = name.scene_id if is_plain else safe_name(name.scene_id)
    return out / VIEWS / scene / f"N{name.num_references}"
