"""Writes weights as a PyTorch pipeline folder, and checks it against PyTorch.

    python -m escherjax.export --weights runs/6dof --out exported/
    python -m escherjax.export --weights runs/6dof/checkpoints/100000 --params raw --out exported/
    python -m escherjax.export --weights runs/6dof --out exported/ --push-to-hub OWNER/NAME

W is a training work directory, one checkpoint in it, a pipeline folder, or a hub id. Where PyTorch
is installed (extra `torch`), the folder is read there, fixed inputs go through both, and the
deviation of each part is printed and written to --out/parity.json; too large a one exits with 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import logging
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from escherjax.errors import EXIT_ERROR, EXIT_OK, UserError, aligned, run_command

if TYPE_CHECKING:
    import numpy as np

    from escherjax.sample.pipeline import Pipeline

# Largest relative deviation that rounding explains, with room for large networks: those of the
# tests stay below 5e-5. A lost bias or GELU by tanh is above it; a norm's wrong epsilon can be
# below, and is left to the tests against recorded arrays.
ALLOWED = 5e-4

_NUM_REFERENCES = _NUM_TARGETS = 2
_NUM_STEPS = 2  # of the sampled views
_VERSIONED = ("escherjax", "jax", "flax", "numpy", "torch", "diffusers", "transformers")

log = logging.getLogger("escherjax.export")


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far PyTorch is from JAX in one part."""

    part: str
    largest: float  # absolute difference
    rms: float  # root mean square of what JAX gives
    values: int  # how many numbers were compared

    @property
    def relative(self) -> float:
        """The largest difference over the root mean square."""
        return self.largest / max(self.rms, 1e-38)

    @property
    def is_rounding(self) -> bool:
        return self.relative <= ALLOWED  # False for NaN


def main(argv: Sequence[str]) -> int:
    """Runs the command; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", required=True, metavar="W", help="what to export")
    add("--out", required=True, type=Path, metavar="DIR", help="new or empty folder")
    add(
        "--params",
        choices=("ema", "raw"),
        help="of a work directory: averaged or last (default: the average if kept)",
    )
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="round the weights to this (default: as they are)",
    )
    add("--cape", help="camera encoding, where the folder does not name it or is wrong")
    add("--no-check", action="store_true", help="do not compare with PyTorch")
    add("--push-to-hub", metavar="OWNER/NAME", help="upload the folder once it is checked")
    add("--private", action="store_true", help="of the hub: make the repository a private one")
    add("--revision", help="of the hub: the branch to upload to (default: the main one)")
    arguments = parser.parse_args(argv)
    if (arguments.private or arguments.revision) and not arguments.push_to_hub:
        raise UserError("--private and --revision go with --push-to-hub OWNER/NAME; add it.")

    from escherjax.sample import loading
    from escherjax.weights import hub, writing

    writing.check_target(arguments.out)
    if arguments.push_to_hub:
        hub.check_upload(arguments.push_to_hub)
    pipe = loading.load(arguments.weights, cape=arguments.cape, weights=arguments.params)
    pipe.save_torch(arguments.out, arguments.dtype)
    card = pipe.facts
    steps = "" if card.trained_steps is None else f", {card.trained_steps:,} updates"
    kind = card.weights or "weights as they are"
    described = f"EscherNet {card.cape}, {card.resolution} px, {kind}{steps}"
    print(f"{arguments.out}: {described}", file=sys.stderr)
    if arguments.dtype in ("float16", "bfloat16"):
        pipe = loading.load(arguments.out)  # to compare what was written, rounded
    if not _check(pipe, arguments.out, arguments.no_check):
        print(
            f"error: PyTorch computes something else from {arguments.out}; do not use it, and "
            "please report it with its parity.json.",
            file=sys.stderr,
        )
        return EXIT_ERROR
    if arguments.push_to_hub:
        url = hub.push(
            arguments.out,
            arguments.push_to_hub,
            private=arguments.private,
            revision=arguments.revision,
            message=f"Export of {described}",
        )
        print(url)
    print(arguments.out)
    return EXIT_OK


def _check(pipe: Pipeline, folder: Path, skip: bool) -> bool:
    """Compares, prints and writes parity.json; False if the two are too far apart."""
    report: dict[str, Any]
    found: list[Deviation] = []
    if skip or not has_torch():
        reason = "--no-check" if skip else "PyTorch is not installed (pip install escherjax[torch])"
        log.warning("not compared with PyTorch: %s", reason)
        report = {"checked": False, "reason": reason}
    else:
        print("comparing with PyTorch", file=sys.stderr)
        found = compare(pipe, folder)
        print(_table(found), file=sys.stderr)
        parts = {d.part: {"relative": d.relative, **dataclasses.asdict(d)} for d in found}
        for values in parts.values():
            del values["part"]
        report = {
            "checked": True,
            "allowed_relative": ALLOWED,
            "parts": parts,
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
        }
    (folder / "parity.json").write_text(json.dumps(report, indent=2) + "\n")
    return all(deviation.is_rounding for deviation in found)


def _table(deviations: Sequence[Deviation]) -> str:
    rows: list[tuple[str, ...]] = [("part", "largest", "rms", "relative", "allowed", "")]
    for d in deviations:
        numbers = (f"{x:.2e}" for x in (d.largest, d.rms, d.relative))
        rows.append((d.part, *numbers, f"{ALLOWED:.0e}", "" if d.is_rounding else "TOO FAR"))
    return textwrap.indent(aligned(rows, right=range(1, 5)), "  ")


def has_torch() -> bool:
    """Whether the packages of the extra `torch` can be used."""
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def compare(pipe: Pipeline, folder: Path) -> list[Deviation]:
    """Runs fixed inputs through `pipe` and through the folder in PyTorch, in float32 on the CPU.

    Parts: "image_encoder" (tokens), "vae encoder" (mean) and "vae decoder" where there is one,
    "unet" (one prediction, 2 references to 2 targets), "views" (two steps with guidance, from
    pictures to pictures). Needs the extra `torch`.
    """
    import numpy as np

    found = []
    for part, ours, theirs in _outputs(pipe, folder):
        assert ours.shape == theirs.shape, f"{part}: {ours.shape} and {theirs.shape}"
        difference = np.abs(ours.astype(np.float64) - theirs)
        rms = float(np.sqrt(np.mean(np.square(ours, dtype=np.float64))))
        found.append(Deviation(part, float(difference.max()), rms, ours.size))
    return found


def _outputs(pipe: Pipeline, folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(part, what JAX gives, what PyTorch gives), channels last."""
    import jax.numpy as jnp
    import numpy as np
    import torch
    import transformers

    from escherjax.cameras import Cameras, from_spherical
    from escherjax.pytorch import EscherNetPipeline

    transformers.utils.logging.disable_progress_bar()
    theirs = EscherNetPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    side = 2 ** len(pipe.model.unet.config.block_channels)
    latent_shape = (_NUM_TARGETS, side, side, pipe.model.unet.config.in_channels)
    pictures = rng.uniform(-1, 1, (_NUM_REFERENCES, pipe.resolution, pipe.resolution, 3))
    pictures = pictures.astype(np.float32)
    latents = rng.standard_normal((1, *latent_shape), np.float32)

    def cameras(count: int) -> Cameras:
        ranges = (0.5, 2.6), (-3, 3), (1.6, 2.1)  # polar and azimuth angle, radius
        return Cameras(from_spherical(*(rng.uniform(a, b, count) for a, b in ranges)))

    def first(array: np.ndarray) -> torch.Tensor:
        """Channels first, as a tensor."""
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, -3)))

    def last(tensor: torch.Tensor) -> np.ndarray:
        return np.moveaxis(tensor.numpy(), -3, -1)

    references, targets = cameras(_NUM_REFERENCES), cameras(_NUM_TARGETS)
    tokens = np.array(pipe.encode_images(jnp.asarray(pictures)))
    with torch.no_grad():
        yield "image_encoder", tokens, theirs.encode_images(first(pictures)).numpy()
        if pipe.facts.patch is None:
            views = pictures[:, : side * pipe.model.reduction, : side * pipe.model.reduction]
            mean = np.array(pipe.encode_latents(jnp.asarray(views))[0])
            yield "vae encoder", mean, last(theirs.encode_latents(first(views))[0])
            decoded = np.asarray(pipe.decode_latents(latents[0]))
            yield "vae decoder", decoded, last(theirs.decode_latents(first(latents[0])))
        timesteps = np.array([pipe.model.schedule.num_train_timesteps // 2], np.int32)
        x, t, tokens_of = (jnp.asarray(array) for array in (latents, timesteps, tokens[None]))
        ours = np.asarray(pipe.predict_noise(x, t, tokens_of, references[None], targets[None]))
        predicted = theirs.predict_noise(
            first(latents),
            torch.from_numpy(timesteps),
            torch.from_numpy(tokens)[None],
            references.c2w[None],
            targets.c2w[None],
        )
        yield "unet", ours, last(predicted)
    unit = pictures / 2 + np.float32(0.5)
    guidance = max(pipe.facts.guidance_scale, 1.0)
    ours = pipe.generate(
        unit, references, targets, _NUM_STEPS, guidance, initial_latents=latents[0]
    )
    sampled = theirs(
        unit,
        references,
        targets,
        _NUM_STEPS,
        guidance,
        latents=first(latents[0]),
        output_type="np",
    )
    yield "views", ours, sampled.images


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
