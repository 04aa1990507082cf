"""A folder in PyTorch against the same weights here: the same inputs, part by part."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from escherjax.cameras import Cameras, from_spherical

if TYPE_CHECKING:
    from escherjax.sample.pipeline import Pipeline

# Largest relative deviation that rounding explains, with room for large networks: those of the
# tests stay below 5e-5. A lost bias or GELU by tanh is above it; a norm's wrong epsilon can be
# below, and is left to the tests against recorded arrays.
ALLOWED = 5e-4

_NUM_REFERENCES = _NUM_TARGETS = 2
_NUM_STEPS = 2  # of the sampled views


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far PyTorch is from JAX in one part.

    largest: largest absolute difference; rms: root mean square of what JAX gives; relative: the
    first over the second; values: how many numbers were compared.
    """

    part: str
    largest: float
    rms: float
    values: int

    @property
    def relative(self) -> float:
        return self.largest / max(self.rms, float(np.finfo(np.float32).tiny))

    @property
    def is_rounding(self) -> bool:
        return self.relative <= ALLOWED  # False for NaN


def has_torch() -> bool:
    """Whether the packages of the extra `torch` can be used."""
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def versions() -> dict[str, str]:
    """Of what computes on either side."""
    packages = ("escherjax", "jax", "flax", "numpy", "torch", "diffusers", "transformers")
    return {name: importlib.metadata.version(name) for name in packages}


def compare(pipe: Pipeline, folder: Path) -> list[Deviation]:
    """Runs fixed inputs through `pipe` and through the folder in PyTorch, in float32 on the CPU.

    Parts: "image_encoder" (tokens), "vae encoder" (mean) and "vae decoder" where there is one,
    "unet" (one prediction, 2 references to 2 targets), "views" (two steps with guidance, from
    pictures to pictures). Needs the extra `torch`.
    """
    found = []
    for part, ours, theirs in _outputs(pipe, folder):
        assert ours.shape == theirs.shape, f"{part}: {ours.shape} and {theirs.shape}"
        difference = np.abs(ours.astype(np.float64) - theirs)
        rms = float(np.sqrt(np.mean(np.square(ours, dtype=np.float64))))
        found.append(Deviation(part, float(difference.max()), rms, ours.size))
    return found


def _outputs(pipe: Pipeline, folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(part, what JAX gives, what PyTorch gives), channels last."""
    import torch
    import transformers

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
    references, targets = (_cameras(rng, n) for n in (_NUM_REFERENCES, _NUM_TARGETS))

    tokens = np.array(pipe.encode_images(pictures))
    with torch.no_grad():
        yield "image_encoder", tokens, theirs.encode_images(_first(pictures)).numpy()
        if pipe.facts.patch is None:
            views = pictures[:, : side * pipe.model.reduction, : side * pipe.model.reduction]
            mean = np.array(pipe.encode_latents(views)[0])
            yield "vae encoder", mean, _last(theirs.encode_latents(_first(views))[0])
            decoded = np.asarray(pipe.decode_latents(latents[0]))
            yield "vae decoder", decoded, _last(theirs.decode_latents(_first(latents[0])))
        timesteps = np.array([pipe.model.schedule.num_train_timesteps // 2], np.int32)
        ours = pipe.predict_noise(
            latents, timesteps, tokens[None], _batch(references), _batch(targets)
        )
        predicted = theirs.predict_noise(
            _first(latents),
            torch.from_numpy(timesteps),
            torch.from_numpy(tokens)[None],
            references.c2w[None],
            targets.c2w[None],
        )
        yield "unet", np.asarray(ours), _last(predicted)
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
        latents=_first(latents[0]),
        output_type="np",
    )
    yield "views", ours, sampled.images


def _cameras(rng: np.random.Generator, count: int) -> Cameras:
    polar, azimuth, radius = (rng.uniform(*r, count) for r in ((0.5, 2.6), (-3, 3), (1.6, 2.1)))
    return Cameras(np.asarray(from_spherical(polar, azimuth, radius), np.float32))


def _batch(cameras: Cameras) -> Cameras:
    return Cameras(cameras.c2w[None])


def _first(array: np.ndarray):
    """Channels first, as a tensor."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, -3)))


def _last(tensor) -> np.ndarray:
    return np.moveaxis(tensor.numpy(), -3, -1)


def table(deviations: Sequence[Deviation]) -> str:
    """The comparison as text, a line for each part."""
    lines = [f"  {'part':<14} {'largest':>10} {'rms':>10} {'relative':>10} {'allowed':>10}"]
    lines += [
        f"  {d.part:<14} {d.largest:10.2e} {d.rms:10.2e} {d.relative:10.2e} {ALLOWED:10.0e}"
        + ("" if d.is_rounding else "  TOO FAR")
        for d in deviations
    ]
    return "\n".join(lines)
