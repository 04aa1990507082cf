"""Draws new views of a scene.

    python -m escherjax.sample --weights runs/demo --views SCENE --references 0,5,9 \\
        --targets orbit --num-views 24 --out out/

    python -m escherjax.sample --weights runs/demo --views photo.jpg --camera front --matting ...

SCENE is a folder of pictures with transforms.json, a Zero123 render folder (000.png, 000.npy), or a
COLMAP folder (images/, sparse/0), whose world is turned z up, centred and scaled to radius 1.5.
Photos need --camera: front, right, back, left, or azimuth:elevation:radius in degrees.
TARGETS is a path (orbit, archimedean), 'all' for every camera of the scene (written beside the
true views), or a transforms.json. Pictures, a contact sheet, the cameras and everything needed to
repeat the run go to --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from escherjax import input_arguments
from escherjax.errors import UserError, run_command

_MIN_VIEWS_PER_DEVICE = 4  # with fewer, devices are not shared unless asked for

if TYPE_CHECKING:
    import numpy as np

    from escherjax.inputs import InputViews


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise UserError(f"--out {arguments.out} is not empty; name a new folder.")

    import numpy as np

    from escherjax import cameras, inputs, pictures, pipeline
    from escherjax.cameras import Cameras
    from escherjax.data.transforms import write_transforms

    scene = input_arguments.open_views(arguments)
    references = scene.references
    scale = 1.0
    if arguments.max_radius is not None:
        _, scale, _ = cameras.normalize_scene(scene.c2w, arguments.max_radius)
    target_c2w = _targets(arguments, scene, scale)
    num_devices = arguments.view_parallel
    if num_devices is None:
        num_devices = _num_devices(len(target_c2w))
    pipe = pipeline.load(
        arguments.weights, arguments.dtype, arguments.cape, view_devices=num_devices
    )
    fov_deg = input_arguments.training_fov_deg(arguments, pipe.facts)
    fitted = scene.fit(pipe.resolution, fov_deg, scale=scale)
    images, c2w, K = pictures.to_uint8(fitted.images), fitted.cameras.c2w, fitted.cameras.K
    true_images = None
    if arguments.targets == "all":
        every = scene.fit(pipe.resolution, fov_deg, np.arange(scene.num_views))
        true_images = pictures.to_uint8(every.images)
    notes = fitted.notes + inputs.radius_notes(c2w, "references", pipe.facts)
    notes += inputs.radius_notes(target_c2w, "targets", pipe.facts)

    print(*notes, sep="\n", file=sys.stderr)
    print(
        f"{len(references)} references to {len(target_c2w)} views, {arguments.steps} steps",
        file=sys.stderr,
    )
    started = time.perf_counter()
    views = pipe.generate(
        fitted.images,
        Cameras(c2w),
        Cameras(target_c2w),
        num_steps=arguments.steps,
        guidance_scale=arguments.guidance,
        seed=arguments.seed,
        sampler=arguments.sampler,
        eta=arguments.eta,
        guidance_rescale=arguments.guidance_rescale,
    )
    elapsed = time.perf_counter() - started
    views = pictures.to_uint8(views)

    paths = pictures.save_images(arguments.out, views)
    pictures.contact_sheet(arguments.out / "contact_sheet.png", images, views, true_images)
    if arguments.targets in _presets():
        pictures.save_animation(arguments.out, views)
    names = [path.name for path in paths]
    write_transforms(arguments.out / "transforms.json", target_c2w, K[0], pipe.resolution, names)
    record = {
        "command": ["python", "-m", "escherjax.sample", *argv],
        "references": references.tolist(),
        "num_views": len(views),
        "view_parallel": num_devices,
        "resolution": pipe.resolution,
        "cape": pipe.model.cape,
        "scene_scale": scale,
        "inputs": notes,
        "seconds": round(elapsed, 2),
        **{name: getattr(arguments, name) for name in (
            "steps", "guidance", "guidance_rescale", "seed", "sampler", "eta"
        )},
    }
    (arguments.out / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    print(arguments.out / "contact_sheet.png")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", required=True,
        help="work directory, checkpoint in it, pipeline folder, or hub id owner/name")  # fmt: skip
    input_arguments.add_arguments(parser)
    add("--targets", default="orbit",
        help="orbit, archimedean, all, or a transforms.json (default %(default)s)")  # fmt: skip
    add("--num-views", type=int, default=24, help="length of a path (default %(default)s)")
    add("--out", required=True, type=Path)
    add("--steps", type=int, default=50, help="sampling steps (default %(default)s)")
    add("--guidance", type=float, default=3.0, help="scale, 1 for none (default %(default)s)")
    add("--seed", type=int, default=0)
    add("--sampler", default="ddim", help="ddim (as published), dpmpp_2m, unipc")
    add("--eta", type=float, default=0.0,
        help="noise that ddim adds at each step, 0 to 1 (default %(default)s)")  # fmt: skip
    add("--guidance-rescale", type=float, default=0.0,
        help="how far guidance keeps the contrast of the unguided views, 0 to 1 "
        "(default %(default)s)")  # fmt: skip
    add("--dtype", default="float32", help="compute: float32 or bfloat16")
    add("--view-parallel", type=int, metavar="N",
        help="devices that share the views; default: all, if each gets four or more")  # fmt: skip
    add("--cape", help="camera encoding of a pipeline folder whose name does not say it")
    add("--max-radius", type=float, metavar="R",
        help="scale the scene so that its farthest camera stands R from the origin")  # fmt: skip
    return parser


def _num_devices(num_views: int) -> int:
    """All local devices if each gets views enough, else one."""
    import jax

    count = jax.local_device_count()
    return count if num_views >= _MIN_VIEWS_PER_DEVICE * count else 1


def _presets() -> tuple[str, ...]:
    from escherjax import trajectories

    return trajectories.PRESETS


def _targets(arguments: argparse.Namespace, scene: InputViews, scale: float) -> np.ndarray:
    """Target cameras, c2w [M, 4, 4]."""
    import numpy as np

    from escherjax import cameras, trajectories
    from escherjax.data.transforms import read_cameras

    if arguments.targets == "all":
        c2w = scene.c2w.astype(np.float32)
        c2w[:, :3, 3] *= scale
        return c2w
    if arguments.targets in trajectories.PRESETS:
        polar, _, radius = cameras.to_spherical(scene.c2w)
        elevation = float(np.pi / 2 - np.median(polar))
        radius = scale * float(np.median(radius))
        return trajectories.trajectory(
            arguments.targets, arguments.num_views, radius, elevation
        )
    path = Path(arguments.targets)
    if not path.is_file():
        raise UserError(
            f"--targets {arguments.targets}: neither a path ({', '.join(trajectories.PRESETS)}), "
            "nor 'all', nor a transforms.json that exists."
        )
    c2w = read_cameras(path)
    c2w[:, :3, 3] *= scale
    return c2w


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
