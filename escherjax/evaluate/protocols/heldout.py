"""Protocol `heldout`: scenes of one's own, from shards or scene folders.

Every scene's views are put in a random order seeded by its id. The first N of it are the
references; the views after the largest N are the targets, the same ones for every N, all of them
scored.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.data.formats.folders import find_folders, layout_of, read_scene_folder
from escherjax.data.shards import COMPLETE_FILE, Scene, check_unique, open_shards, split_names
from escherjax.errors import UserError
from escherjax.evaluate.picture_rules import PictureRules
from escherjax.evaluate.protocol import Case, CaseRequest, Protocol, Source
from escherjax.files import is_remote

DEFAULT_COUNTS = (1, 2, 3, 5)


def make(source: Source) -> Protocol:
    """Opens shards or scene folders.

    Options: split of shards (default: the held-out one) or of transforms_SPLIT.json (default
    train); num_targets: most targets of a scene (default: all views that are no reference);
    fov_deg: field of view that `corrected` brings pictures to (default: their own); max_radius:
    scenes are scaled so that the farthest camera stands there (default: poses as stored).
    Raises UserError if nothing is there, two scenes share an id, or options do not fit.
    """
    num_targets, fov_deg = source.num_targets, source.fov_deg
    max_radius = source.max_radius
    problems = []
    if num_targets is not None and num_targets < 1:
        problems.append(f"num_targets must be at least 1, got {num_targets}.")
    if fov_deg is not None and not 0 < fov_deg < 180:
        problems.append(f"fov_deg must be between 0 and 180 degrees, got {fov_deg:g}.")
    if fov_deg is not None and source.mode == "faithful":
        problems.append("fov_deg is for the mode 'corrected'; 'faithful' keeps fields of view.")
    if max_radius is not None and not max_radius > 0:
        problems.append(f"max_radius must be above 0, got {max_radius:g}.")
    if problems:
        raise UserError(" ".join(problems))
    rules = PictureRules("zero123" if source.mode == "faithful" else "white", fov_deg)
    reserved = max(source.reference_counts or DEFAULT_COUNTS)
    scenes, split = _find_scenes(source)
    return source.protocol(
        scenes,
        functools.partial(
            _read_case,
            rules=rules,
            reserved=reserved,
            num_targets=num_targets,
            max_radius=max_radius,
        ),
        DEFAULT_COUNTS,
        rules={
            **rules.describe(),
            "split": split,
            "references": "first N views in an order drawn from the scene's id",
            "targets": f"views {reserved}.. of that order"
            + ("" if num_targets is None else f", at most {num_targets}"),
            "poses": "as stored" if max_radius is None else f"farthest camera at {max_radius:g}",
        },
        max_references=reserved,
    )


def view_order(scene_id: str, num_views: int) -> np.ndarray:
    """A permutation [num_views] that depends on nothing but its arguments."""
    digest = hashlib.sha256(scene_id.encode()).digest()
    # RandomState's stream is fixed for ever; that of numpy's newer generators is not.
    return np.random.RandomState(np.frombuffer(digest, np.uint32)).permutation(num_views)


def _find_scenes(source: Source) -> tuple[dict[str, Callable[[], Scene]], str]:
    """({scene id: a function that reads it}, which split of the data they are)."""
    path, split = source.data_path, source.split
    readers: dict[str, Callable[[], Scene]]
    if is_remote(path) or (Path(path) / COMPLETE_FILE).exists():
        split = str(split or _heldout_split(path))
        shards = open_shards(path, split)
        count = len(shards) if source.limit is None else min(source.limit, len(shards))
        ids = [shards.read_unchecked(index).scene_id for index in range(count)]
        check_unique(ids)
        readers = {
            scene_id: functools.partial(shards.__getitem__, index)
            for scene_id, index in sorted(zip(ids, range(count), strict=True))
        }
        return readers, split
    split = split or "train"
    found = find_folders(
        Path(path),
        lambda folder, _: layout_of(folder, split) is not None,
        f"shards, or folders with transforms_{split}.json or transforms.json, 000.png with "
        "000.npy, or a COLMAP model",
    )
    readers = {
        scene_id: functools.partial(read_scene_folder, folder, scene_id, split)
        for scene_id, folder in found
    }
    return readers, f"transforms_{split}.json, where a folder has it"


def _heldout_split(path: Path | str) -> str:
    names = split_names(path)
    if "heldout" in names:
        return "heldout"
    raise UserError(
        f"{path} has no scenes held out (its splits: {', '.join(sorted(names))}). Import with "
        "--heldout, or name a split with --split, knowing whether it was trained on."
    )


def _read_case(
    request: CaseRequest,
    read: Callable[[], Scene],
    rules: PictureRules,
    reserved: int,
    num_targets: int | None,
    max_radius: float | None,
) -> Case:
    scene = read()
    if scene.num_views <= reserved:
        raise UserError(
            f"scene '{request.scene_id}' has {scene.num_views} views but must have more than "
            f"{reserved}, the most references. Ask for fewer references, or leave the scene out."
        )
    order = view_order(request.scene_id, scene.num_views)
    references = order[: request.num_references]
    targets = order[reserved:][:num_targets]
    c2w = scene.c2w.astype(np.float32)
    if max_radius is not None:
        c2w, _, _ = cameras.normalize_scene(c2w, max_radius)

    def squares(make: Callable[..., Any], views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        made = []
        for view in views.tolist():
            name = f"view {view} of scene '{request.scene_id}'"
            picture = scene.images[view]
            if isinstance(picture, bytes):
                picture = images.decode_image(picture, name)
            made.append(make(picture, scene.K[view], request.resolution, name))
        pictures, intrinsics = zip(*made, strict=True)
        return np.stack(pictures), np.stack(intrinsics)

    truth, target_K = squares(rules.truth, targets)
    return Case(
        scene_id=request.scene_id,
        num_references=request.num_references,
        reference_images=squares(rules.reference, references)[0],
        reference_c2w=c2w[references],
        target_c2w=c2w[targets],
        truth=truth,
        scored=np.arange(len(targets)),
        target_K=target_K,
    )
