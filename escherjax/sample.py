"""Draws new views of a scene.

    python -m escherjax.sample --weights runs/demo --views SCENE --references 0,5,9 \\
        --targets orbit --num-views 24 --out out/

SCENE is a folder of pictures with transforms.json, a Zero123 render folder (000.png, 000.npy), or a
COLMAP folder (images/, sparse/0), whose world is turned z up, centred and scaled to radius 1.5.
TARGETS is a path (orbit, archimedean), 'all' for every camera of the scene (written beside the
true views), or a transforms.json. Pictures, a contact sheet, the cameras and everything needed to
repeat the run go to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from escherjax.errors import UserError, run_command

_MIN_VIEWS_PER_DEVICE = 4  # with fewer, devices are not shared unless asked for

if TYPE_CHECKING:
    import numpy as np

    from escherjax.data.records import Scene


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise UserError(f"--out {arguments.out} is not empty; name a new folder.")

    import numpy as np

    from escherjax import cameras, pictures, pipeline, view_plans
    from escherjax.cameras import Cameras
    from escherjax.data.drawing import read_views
    from escherjax.data.scenes import read_scene_folder
    from escherjax.data.transforms import write_transforms

    scene = read_scene_folder(arguments.views)
    references = _reference_indices(arguments.references, scene)
    scale = 1.0
    if arguments.max_radius is not None:
        _, scale, _ = cameras.normalize_scene(scene.c2w, arguments.max_radius)
    target_c2w = _targets(arguments, scene, scale)
    # Wrong settings are refused before weights are read
    view_plans.make_plan(arguments.plan, scene.c2w[references], target_c2w, chunk=arguments.chunk)
    num_devices = arguments.view_parallel
    if num_devices is None:
        num_devices = _num_devices(len(target_c2w))
    pipe = pipeline.load(
        arguments.weights, arguments.dtype, arguments.cape, view_devices=num_devices
    )
    images, c2w, K = read_views(scene, references, pipe.resolution, "white")
    c2w[:, :3, 3] *= scale
    true_images = None
    if arguments.targets == "all":
        true_images, _, _ = read_views(
            scene, np.arange(scene.num_views), pipe.resolution, "white"
        )

    plan = pipe.plan_views(
        Cameras(c2w), Cameras(target_c2w), arguments.plan, arguments.chunk, arguments.guidance
    )
    num_conditioning, num_together = plan.shape
    memory = pipe.estimate_memory(
        num_conditioning, max(num_together, arguments.min_targets), arguments.guidance
    )
    print(f"{plan.describe()}\nmemory: {memory.describe()}", file=sys.stderr)
    print(
        f"{len(references)} references to {len(target_c2w)} views, {arguments.steps} steps",
        file=sys.stderr,
    )
    started = time.perf_counter()
    views = pipe.generate(
        images / 255.0,
        Cameras(c2w),
        Cameras(target_c2w),
        num_steps=arguments.steps,
        guidance_scale=arguments.guidance,
        seed=arguments.seed,
        sampler=arguments.sampler,
        eta=arguments.eta,
        guidance_rescale=arguments.guidance_rescale,
        plan=plan,
        min_targets=arguments.min_targets,
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
        "plan": dataclasses.asdict(plan),
        "memory_estimate": dataclasses.asdict(memory),
        "min_targets": arguments.min_targets,
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
    add("--views", required=True, type=Path, metavar="SCENE", help="scene folder")
    add("--references", metavar="I,J,...", help="views to start from; default: the first three")
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
    add("--plan", default="auto",
        help="which views are drawn together: joint (all), anchors (some spread over the path, "
        "then chunks between them), autoregressive (chunk after chunk), auto: joint where memory "
        "allows, else anchors (default %(default)s)")  # fmt: skip
    add("--chunk", type=int, metavar="N", help="most views at once, except in plan joint")
    add("--min-targets", type=int, default=0, metavar="N",
        help="draw at least N views together: extra ones beside the targets are drawn and dropped; "
        "few views gain from 15 (default %(default)s)")  # fmt: skip
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


def _reference_indices(text: str | None, scene: Scene) -> np.ndarray:
    import numpy as np

    if text is None:
        return np.arange(min(3, scene.num_views))
    try:
        indices = np.array([int(part) for part in text.split(",")])
    except ValueError as error:
        raise UserError(f"--references {text!r}; needed numbers such as 0,5,9.") from error
    if indices.min() < 0 or indices.max() >= scene.num_views:
        raise UserError(
            f"--references {text}: the scene has views 0 to {scene.num_views - 1}; choose of these."
        )
    return indices


def _targets(arguments: argparse.Namespace, scene: Scene, scale: float) -> np.ndarray:
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
