"""Generates new views of a scene.

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
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from escherjax import files
from escherjax.errors import UserError, run_command
from escherjax.models.diffusion.sampling import Sampling
from escherjax.sample import arguments as flags

if TYPE_CHECKING:
    import numpy as np

    from escherjax.data.inputs import InputViews
    from escherjax.sample.program import OnStep
    from escherjax.sample.targets import Targets

_MIN_VIEWS_PER_DEVICE = 4  # with fewer, devices are not shared unless asked for


def main(argv: Sequence[str]) -> int:
    arguments = flags.parse(argv, __doc__)
    Sampling.from_arguments(arguments)  # wrong settings are refused before anything is read
    with files.output_folder(arguments.out):
        flags.check_out(arguments)
        return _sample(arguments, argv)


def _sample(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    from escherjax import cameras

    scene = flags.open_views(arguments)
    scale = 1.0
    if arguments.max_radius is not None:
        _, scale, _ = cameras.normalize_scene(scene.c2w, arguments.max_radius)
    targets = flags.choose_targets(arguments, scene.c2w, scene.references, scale)
    if arguments.preview:
        for note in scene.notes:
            print(note)
        print(_save_preview(arguments.out, scene, scale, targets))
        return 0
    _check_plan(arguments, scene, targets)
    print(_generate(arguments, argv, scene, scale, targets))
    return 0


def _check_plan(arguments: argparse.Namespace, scene: InputViews, targets: Targets) -> None:
    """Refuses wrong settings before weights are read."""
    from escherjax.sample import plans

    if arguments.plan == "joint" and arguments.chunk is not None:
        raise UserError("--chunk must be left out with --plan joint: all views are one chunk.")
    references = scene.c2w[scene.references]
    plans.make_plan(arguments.plan, references, targets.c2w, chunk=arguments.chunk)


def _generate(
    arguments: argparse.Namespace,
    argv: Sequence[str],
    scene: InputViews,
    scale: float,
    targets: Targets,
) -> Path:
    """Loads weights, generates and writes everything; returns the path of the contact sheet."""
    import numpy as np

    from escherjax.cameras import Cameras
    from escherjax.data import inputs
    from escherjax.reports import sheets
    from escherjax.sample import loading, outputs
    from escherjax.weights import identity, runs

    num_devices = arguments.view_parallel
    if num_devices is None:
        num_devices = _num_devices(len(targets.c2w))
    path, folder = identity.pin(arguments.weights)
    pipe = loading.load(path, arguments.dtype, arguments.cape, view_devices=num_devices)
    # By the name that was given: a hub id, not its folder, names the camera encoding
    weights = {**identity.describe(pipe.facts, folder), "path": str(path)}
    if arguments.weights_hash not in (None, weights["hash"]):
        raise UserError(
            f"--weights-hash is {arguments.weights_hash}, but the weights in {path} have the hash "
            f"{weights['hash']}. Name with --weights where they are now, or others."
        )
    sampling = Sampling.from_arguments(arguments).resolve(
        pipe.facts.guidance_scale, pipe.model.schedule.num_train_timesteps
    )
    fov_deg = flags.training_fov_deg(arguments, pipe.facts)
    fitted = scene.fit(pipe.resolution, fov_deg, scale=scale)
    true_views = None
    if arguments.targets == "all":
        every = scene.fit(pipe.resolution, fov_deg, np.arange(scene.num_views), scale)
        true_views = sheets.to_uint8(every.images)
    c2w = np.asarray(fitted.cameras.c2w)
    notes = fitted.notes + inputs.radius_notes(c2w, "references", pipe.facts)
    notes += inputs.radius_notes(targets.c2w, "targets", pipe.facts)

    cameras = Cameras(c2w), Cameras(targets.c2w)
    plan = pipe.plan_views(*cameras, arguments.plan, arguments.chunk, sampling.guidance_scale)
    num_conditioning, num_together = plan.shape
    memory = pipe.estimate_memory(
        num_conditioning, max(num_together, arguments.min_targets), sampling.guidance_scale
    )
    print(
        *notes,
        plan.describe(),
        f"memory: {memory.describe()}",
        f"{len(c2w)} references to {len(targets.c2w)} views, {sampling.num_steps} steps, "
        f"guidance {sampling.guidance_scale:g}",
        sep="\n",
        file=sys.stderr,
    )
    started = time.perf_counter()
    with _progress() as on_step:
        made = pipe.generate(
            fitted.images,
            *cameras,
            **dataclasses.asdict(sampling),
            on_step=on_step,
            plan=plan,
            min_targets=arguments.min_targets,
        )
    elapsed = time.perf_counter() - started

    references, views = sheets.to_uint8(fitted.images), sheets.to_uint8(made)
    K = np.asarray(fitted.cameras.K)[0]
    outputs.write_views(arguments.out, references, views, targets, K, true_views)
    _save_preview(arguments.out, scene, scale, targets)
    if arguments.nerf_folder:
        outputs.write_nerf_folder(
            arguments.out / "nerf",
            references,
            fitted.cameras,
            views,
            targets.c2w,
            arguments.alpha,
        )
    record = {
        "command": [*flags.COMMAND, *argv],
        "arguments": flags.record_arguments(arguments),
        "references": scene.references.tolist(),
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
    (arguments.out / flags.RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
    return arguments.out / outputs.SHEET_NAME


def _save_preview(folder: Path, scene: InputViews, scale: float, targets: Targets) -> Path:
    """Writes the picture of the cameras and returns its path."""
    from escherjax.reports import preview

    path = folder / flags.PREVIEW_NAME
    c2w = scene.c2w[scene.references]
    c2w[:, :3, 3] *= scale
    names = [str(view) for view in scene.references]
    preview.save_preview(path, c2w, targets.c2w, names, targets.is_path, targets.closed)
    return path


@contextlib.contextmanager
def _progress() -> Iterator[OnStep]:
    """A bar of sampling steps, as `Pipeline.generate` reports them."""
    from tqdm import tqdm

    with tqdm(desc="sampling", unit="step") as bar:

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
