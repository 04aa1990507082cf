"""Draws new views of a scene.

    python -m escherjax.sample --weights runs/demo --views SCENE --references 0,5,9 \\
        --targets orbit --num-views 24 --out out/

    python -m escherjax.sample --weights runs/demo --views photo.jpg --camera front --matting \\
        --out out/

SCENE is a folder of pictures with transforms.json, a Zero123 render folder (000.png, 000.npy), or a
COLMAP folder (images/, sparse/0), whose world is turned z up, centred and scaled to radius 1.5.
Photos need --camera: front, right, back, left, or azimuth:elevation:radius in degrees.
TARGETS is a path, 'all' for every camera of the scene (written beside the true views), or a file of
cameras. Pictures, a contact sheet, a picture of the cameras, transforms.json and everything needed
to repeat the run (--repeat out/run.json --out again) go to --out, and an animation of a path.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from escherjax import files
from escherjax.errors import UserError, run_command
from escherjax.models.diffusion import sampling as sampling_lib
from escherjax.models.diffusion.sampling import Sampling
from escherjax.sample import arguments as input_arguments
from escherjax.sample import run_record, target_arguments

if TYPE_CHECKING:
    import numpy as np

    from escherjax.sample.program import OnStep

_MIN_VIEWS_PER_DEVICE = 4  # with fewer, devices are not shared unless asked for


def main(argv: Sequence[str]) -> int:
    argv = run_record.repeated(argv)
    arguments = _parser().parse_args(argv)
    if arguments.weights is None and not arguments.preview:
        raise UserError("--weights is missing; only --preview does without.")

    Sampling.from_arguments(arguments)  # wrong settings are refused before anything is read
    with files.output_folder(arguments.out):
        target_arguments.check_out(arguments)
        return _sample(arguments, argv)


def _sample(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    import numpy as np

    from escherjax import cameras
    from escherjax.cameras import Cameras
    from escherjax.data import inputs
    from escherjax.reports import sheets
    from escherjax.sample import loading, outputs, plans
    from escherjax.weights import identity, runs

    scene = input_arguments.open_views(arguments)
    references = scene.references
    scale = 1.0
    if arguments.max_radius is not None:
        _, scale, _ = cameras.normalize_scene(scene.c2w, arguments.max_radius)
    targets = target_arguments.choose(arguments, scene.c2w, references, scale)
    target_c2w = targets.c2w
    if arguments.preview:
        print(target_arguments.save_preview(arguments, scene.c2w, references, scale, targets))
        return 0
    # Wrong settings are refused before weights are read
    if arguments.plan == "joint" and arguments.chunk is not None:
        raise UserError("--chunk: means nothing to --plan joint, which draws all views at once.")
    plans.make_plan(arguments.plan, scene.c2w[references], target_c2w, chunk=arguments.chunk)
    num_devices = arguments.view_parallel
    if num_devices is None:
        num_devices = _num_devices(len(target_c2w))
    arguments.weights, folder = identity.pin(arguments.weights)
    pipe = loading.load(
        arguments.weights, arguments.dtype, arguments.cape, view_devices=num_devices
    )
    # By the name that was given: of a hub id, the folder's own does not say the camera encoding
    weights = {**identity.describe(pipe.facts, folder), "path": str(arguments.weights)}
    run_record.check_weights(arguments.weights_hash, weights)
    sampling = Sampling.from_arguments(arguments).resolve(
        pipe.facts.guidance_scale, pipe.model.schedule.num_train_timesteps
    )
    fov_deg = input_arguments.training_fov_deg(arguments, pipe.facts)
    fitted = scene.fit(pipe.resolution, fov_deg, scale=scale)
    images, c2w, K = sheets.to_uint8(fitted.images), fitted.cameras.c2w, fitted.cameras.K
    true_images = None
    if arguments.targets == "all":
        every = scene.fit(pipe.resolution, fov_deg, np.arange(scene.num_views), scale)
        true_images = sheets.to_uint8(every.images)
    notes = fitted.notes + inputs.radius_notes(c2w, "references", pipe.facts)
    notes += inputs.radius_notes(target_c2w, "targets", pipe.facts)

    print(*notes, sep="\n", file=sys.stderr)
    plan = pipe.plan_views(
        Cameras(c2w), Cameras(target_c2w), arguments.plan, arguments.chunk, sampling.guidance_scale
    )
    num_conditioning, num_together = plan.shape
    memory = pipe.estimate_memory(
        num_conditioning, max(num_together, arguments.min_targets), sampling.guidance_scale
    )
    print(f"{plan.describe()}\nmemory: {memory.describe()}", file=sys.stderr)
    print(
        f"{len(references)} references to {len(target_c2w)} views, {sampling.num_steps} steps, "
        f"guidance {sampling.guidance_scale:g}",
        file=sys.stderr,
    )
    started = time.perf_counter()
    with _progress() as on_step:
        views = pipe.generate(
            fitted.images,
            Cameras(c2w),
            Cameras(target_c2w),
            **dataclasses.asdict(sampling),
            on_step=on_step,
            plan=plan,
            min_targets=arguments.min_targets,
        )
    elapsed = time.perf_counter() - started
    views = sheets.to_uint8(views)

    outputs.write_views(arguments.out, images, views, targets, K[0], true_images)
    target_arguments.save_preview(arguments, scene.c2w, references, scale, targets)
    if arguments.nerf_folder:
        outputs.write_nerf_folder(
            arguments.out / "nerf", images, Cameras(c2w, K), views, target_c2w, arguments.alpha
        )
    record = {
        "references": references.tolist(),
        "targets": targets.settings,
        "num_views": len(views),
        "view_parallel": num_devices,
        "weights": weights,
        "scene_scale": scale,
        "inputs": [str(note) for note in notes],
        "plan": dataclasses.asdict(plan),
        "memory_estimate": dataclasses.asdict(memory),
        "min_targets": arguments.min_targets,
        "seconds": round(elapsed, 2),
        "versions": runs.versions(),
        "steps": sampling.num_steps,
        "guidance": sampling.guidance_scale,
        "guidance_rescale": sampling.guidance_rescale,
        "seed": sampling.seed,
        "sampler": sampling.sampler,
        "eta": sampling.eta,
        "dtype": arguments.dtype,
    }
    run_record.write_record(arguments.out, argv, record)
    print(arguments.out / outputs.SHEET_NAME)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", help="work directory, checkpoint in it, pipeline folder, or hub id owner/name")
    add("--weights-hash", metavar="HASH", help="refuse other weights; run.json has it")
    input_arguments.add_arguments(parser)
    sampling_lib.add_arguments(parser)
    add("--out", required=True, type=Path)
    add(
        "--repeat",
        metavar="RUN.JSON",
        help="the recorded command again, with what else is given in place of its own",
    )
    add(
        "--plan",
        default="auto",
        help="which views are drawn together: joint (all), anchors (some spread over the path, "
        "then chunks between them), autoregressive (chunk after chunk), auto: joint where memory "
        "allows, else anchors (default %(default)s)",
    )
    add("--chunk", type=int, metavar="N", help="most views at once, except in plan joint")
    add(
        "--min-targets",
        type=int,
        default=0,
        metavar="N",
        help="draw at least N views together: extra ones beside the targets are drawn and dropped; "
        "few views gain from 15 (default %(default)s)",
    )
    add("--dtype", default="float32", help="compute: float32 or bfloat16")
    add(
        "--view-parallel",
        type=int,
        metavar="N",
        help="devices that share the views; default: all, if each gets four or more",
    )
    add("--cape", help="camera encoding of a pipeline folder whose name does not say it")
    add(
        "--max-radius",
        type=float,
        metavar="R",
        help="scale the scene so that its farthest camera stands R from the origin",
    )
    target_arguments.add_arguments(parser)
    return parser


@contextlib.contextmanager
def _progress() -> Iterator[OnStep]:
    """A bar of sampling steps, as `Pipeline.generate` reports them."""
    from tqdm import tqdm

    with tqdm(desc="drawing", unit="step") as bar:

        def on_step(done: int, num_steps: int, _: np.ndarray) -> None:
            bar.total = num_steps
            bar.update(done - bar.n)

        yield on_step


def _num_devices(num_views: int) -> int:
    """All local devices if each gets views enough, else one."""
    import jax

    count = jax.local_device_count()
    return count if num_views >= _MIN_VIEWS_PER_DEVICE * count else 1


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
