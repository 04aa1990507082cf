"""Protocol `nerf`: NeRF-Synthetic, references by published index lists, all test frames scored.

The list of N references of a scene is SCENE/train_N{N}M20_random.npy, integers that count frames
of transforms_train.json. The published lists are prefixes of one order, except for N = 1.

For 6DoF networks the published evaluation scales translations by 1.5 / (largest radius of the
training cameras), and turns the world by half a turn about x; relative cameras do not change by
that, and it is left out here. For 4DoF it keeps the poses, so that the encoding clips every radius
(about 4) to its largest, 2.2. `corrected` scales for every network, and pads pictures with white to
the field of view of the training renders (NeRF-Synthetic has 39.6 degrees).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from escherjax.data.formats import transforms
from escherjax.data.formats.folders import find_scene_folders
from escherjax.errors import UserError, listed
from escherjax.evaluate.picture_rules import PictureRules, of_renders
from escherjax.evaluate.protocol import Case, CaseRequest, Protocol, Source

COUNTS = (1, 2, 3, 5, 10, 20, 50, 100)
NUM_SCENES = 8
RADIUS = 1.5
INDEX_FOLDER = "NeRF_idx"


def make(source: Source) -> Protocol:
    """Opens a folder of scenes, each with transforms_train.json and transforms_test.json.

    Raises UserError if there is none, or lists for a number of references are missing everywhere.
    """
    data_path = Path(source.data_path)
    scenes = dict(find_scene_folders(data_path, "transforms"))
    index_path = _index_folder(data_path, source.index_path)
    missing = [
        count
        for count in source.reference_counts or COUNTS
        if not any(_list_file(index_path, scene, count).is_file() for scene in scenes)
    ]
    if missing:
        raise UserError(
            f"{index_path} has no list train_N{{N}}M20_random.npy for N = "
            f"{', '.join(map(str, missing))} of any scene; there must be folders named as the "
            f"scenes ({', '.join(list(scenes)[:3])}, ...). Leave these numbers out, or name the "
            "folder."
        )
    rules = of_renders(source.mode)

    @functools.lru_cache(maxsize=1)  # every N of a scene has the same ground truth
    def read_truth(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
        truth, K = rules.truths(transforms.read_views(folder / "transforms_test.json"), size)
        truth.setflags(write=False)
        return truth, K

    def read_case(request: CaseRequest, folder: Path) -> Case:
        scale_poses = source.mode == "corrected" or not request.cape.startswith("4dof")
        return _read_case(request, folder, index_path, rules, read_truth, scale_poses)

    scaled = f"translations times {RADIUS:g} / largest training radius"
    return source.protocol(
        scenes,
        read_case,
        COUNTS,
        rules={
            **rules.describe(),
            "references": "frames of transforms_train.json by train_N{N}M20_random.npy",
            "targets": "all frames of transforms_test.json",
            "poses": scaled if source.mode == "corrected" else f"6DoF: {scaled}; 4DoF: as stored",
        },
        published_num_scenes=NUM_SCENES,
    )


def read_index(path: Path, count: int, num_frames: int) -> np.ndarray:
    """The list [count] of frames to give; UserError unless it has that many different frames."""
    try:
        index = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); it must be an .npy of integers."
        ) from error
    if index.dtype.kind not in "iu" or index.shape != (count,) or len(set(index.tolist())) < count:
        raise UserError(
            f"{path} must hold {count} different integers, got {index.dtype} {index.shape}."
        )
    if index.min() < 0 or index.max() >= num_frames:
        raise UserError(
            f"{path} names frames {index.min()} to {index.max()}, but transforms_train.json has "
            f"{num_frames} frames; it must be the whole training split."
        )
    return index


def _read_case(
    request: CaseRequest,
    folder: Path,
    index_path: Path,
    rules: PictureRules,
    read_truth: Callable[[Path, int], tuple[np.ndarray, np.ndarray]],
    scale_poses: bool,
) -> Case:
    files = [folder / f"transforms_{split}.json" for split in ("train", "test")]
    lacking = [f"{path} is missing." for path in files if not path.is_file()]
    if lacking:
        raise UserError(f"scene '{request.scene_id}': {listed(lacking)}")
    training, test = (transforms.read_views(path) for path in files)
    list_file = _list_file(index_path, request.scene_id, request.num_references)
    index = read_index(list_file, request.num_references, len(training))
    references = [training[number] for number in index.tolist()]

    largest = max(np.linalg.norm(pose[:3, 3]) for _, pose, _ in training)
    scale = RADIUS / largest if scale_poses else 1.0

    def poses(views: list) -> np.ndarray:
        c2w = np.stack([pose for _, pose, _ in views])
        c2w[:, :3, 3] *= scale
        return c2w.astype(np.float32)

    truth, target_K = read_truth(folder, request.resolution)
    return Case(
        scene_id=request.scene_id,
        num_references=request.num_references,
        reference_images=rules.references(references, request.resolution),
        reference_c2w=poses(references),
        target_c2w=poses(test),
        truth=truth,
        scored=np.arange(len(test)),
        target_K=target_K,
    )


def _list_file(index_path: Path, scene_id: str, count: int) -> Path:
    return index_path / Path(scene_id).name / f"train_N{count}M20_random.npy"


def _index_folder(data_path: Path, given: str | Path | None) -> Path:
    candidates = [data_path / INDEX_FOLDER, data_path.parent / INDEX_FOLDER]
    if given is not None:
        candidates = [Path(given)]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UserError(
        f"no index lists in {' or '.join(map(str, candidates))}; name the folder with "
        "SCENE/train_N3M20_random.npy, as metrics/NeRF_idx of EscherNet's repository has them, "
        "or lists of your own."
    )
