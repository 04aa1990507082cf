"""Protocol `rtmv`: the first N of 20 frames given, all 20 made, frames 10 to 19 scored.

The published evaluation casts linear colours times 255 to 8-bit integers, which wraps bright pixels
around, and its ground truth is what the network would be given, so it carries the same resize.
`corrected` clips and applies the sRGB curve. Either way pictures are opaque and keep their field of
view of 45 degrees, and poses their unit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from escherjax.data.formats import rtmv
from escherjax.errors import UserError
from escherjax.evaluate.picture_rules import PictureRules
from escherjax.evaluate.protocol import Case, CaseRequest, Protocol, Source

NUM_FRAMES = 20
FIRST_SCORED = 10
NUM_SCENES = 10
COUNTS = (1, 2, 3, 5, 10)


def make(source: Source) -> Protocol:
    """Opens a folder of scenes, SCENE/00000.exr and 00000.json; UserError if there is none."""
    rtmv.check_openexr()
    rules = PictureRules("white")
    faithful = source.mode == "faithful"
    to_bytes = rtmv.wrap_to_bytes if faithful else rtmv.tonemap

    def read_picture(path: Path) -> tuple[None, np.ndarray]:
        return None, to_bytes(rtmv.read_exr(path))

    def read_case(request: CaseRequest, folder: Path) -> Case:
        views = rtmv.read_cameras(folder, NUM_FRAMES)
        numbers = [int(path.stem) for path, _, _ in views]
        if numbers != list(range(NUM_FRAMES)):
            raise UserError(
                f"scene '{request.scene_id}': the first frames of {folder} are "
                f"{', '.join(map(str, numbers))} but must be 0 to {NUM_FRAMES - 1}."
            )
        pictures, target_K = rules.truths(views, request.resolution, read_picture)
        c2w = np.stack([pose for _, pose, _ in views]).astype(np.float32)
        count = request.num_references
        return Case(
            scene_id=request.scene_id,
            num_references=count,
            reference_images=pictures[:count],
            reference_c2w=c2w[:count],
            target_c2w=c2w,
            truth=pictures,
            scored=np.arange(FIRST_SCORED, NUM_FRAMES),
            target_K=target_K,
        )

    return source.protocol(
        dict(rtmv.find_scenes(Path(source.data_path))),
        read_case,
        COUNTS,
        rules={
            **rules.describe(),
            "background": "as rendered, alpha not read",
            "colors": "linear x 255, cast to uint8 modulo 256" if faithful else "clipped, sRGB",
            "references": "frames 0..N-1",
            "targets": f"frames 0..{NUM_FRAMES - 1}; {FIRST_SCORED}.. are scored",
            "poses": "as stored",
        },
        max_references=FIRST_SCORED,
        published_num_scenes=NUM_SCENES,
    )
