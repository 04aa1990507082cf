"""The settings of sampling as one value, and their command-line flags. Imports no JAX."""

from __future__ import annotations

import argparse
import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

from escherjax.errors import UserError, listed

SAMPLERS = ("ddim", "dpmpp_2m", "unipc")


def _setting(default: Any, flag: str, help: str) -> Any:
    """A field of `Sampling` with its command-line flag."""
    return dataclasses.field(default=default, metadata={"flag": flag, "help": help})


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How views are sampled. Every field is checked when it is made.

    Args:
        num_steps: denoising steps, at least 1.
        guidance_scale: weight of classifier-free guidance, finite and at least 0; 1 or less is no
            guidance; None is the scale that the weights were trained for (see `resolve`).
        guidance_rescale: 0 to 1, how far the deviation of each guided prediction is brought back
            to that of the conditional one (arXiv 2305.08891, section 3.4).
        sampler: one of `SAMPLERS`.
        eta: 0 to 1, the noise that DDIM adds at each step; other samplers take only 0.
        seed: of the initial noise and of eta's, 0 to 2^32 - 1.

    Raises:
        UserError: for values outside these ranges, naming all of them.
    """

    num_steps: int = _setting(50, "--steps", "sampling steps")
    guidance_scale: float | None = _setting(
        None,
        "--guidance",
        "guidance scale, 1 for none (default: what the weights were trained for; published: 3)",
    )
    guidance_rescale: float = _setting(
        0.0,
        "--guidance-rescale",
        "how far guided views are brought back to the contrast of unguided ones, 0 to 1",
    )
    sampler: str = _setting("ddim", "--sampler", "ddim (as published), dpmpp_2m or unipc")
    eta: float = _setting(0.0, "--eta", "noise that ddim adds at each step, 0 to 1")
    seed: int = _setting(0, "--seed", "seed of the noise")

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.num_steps, numbers.Integral) or self.num_steps < 1:
            problems.append(
                f"num_steps (--steps) must be a whole number of at least 1, got "
                f"{self.num_steps!r}; 50 is usual."
            )
        scale = self.guidance_scale
        if scale is not None and not (
            isinstance(scale, numbers.Real) and 0 <= scale < float("inf")
        ):
            problems.append(
                f"guidance_scale (--guidance) must be a finite number of at least 0, got {scale!r};"
                " 1 is no guidance, 3 is published."
            )
        if not 0 <= self.guidance_rescale <= 1:
            problems.append(f"guidance_rescale must be from 0 to 1, got {self.guidance_rescale}.")
        if self.sampler not in SAMPLERS:
            problems.append(
                f"sampler must be one of {', '.join(SAMPLERS)}, got {str(self.sampler)!r}."
            )
        if not 0 <= self.eta <= 1:
            problems.append(f"eta must be from 0 (no noise) to 1, got {self.eta}.")
        elif self.eta and self.sampler != "ddim":
            problems.append(f"eta must be 0 with sampler {self.sampler!r}, got {self.eta}.")
        if not isinstance(self.seed, numbers.Integral) or not 0 <= self.seed < 2**32:
            problems.append(f"seed must be a whole number from 0 to 2^32 - 1, got {self.seed!r}.")
        if problems:
            raise UserError(listed(problems))

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance is computed: a scale of 1 or less means none."""
        if self.guidance_scale is None:
            raise ValueError("guidance_scale is None; call Sampling.resolve first.")
        return self.guidance_scale > 1

    def resolve(self, guidance_scale: float, num_train_timesteps: int | None = None) -> Sampling:
        """The same settings for given weights.

        Args:
            guidance_scale: what None stands for, `pipe.facts.guidance_scale`.
            num_train_timesteps: the most steps that the weights' schedule allows, where known.

        Raises:
            UserError: if there are more steps than timesteps.
        """
        check_num_steps(self.num_steps, num_train_timesteps)
        if self.guidance_scale is not None:
            return self
        return dataclasses.replace(self, guidance_scale=guidance_scale)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Sampling:
        """The value of the flags of `add_arguments`; fields without a flag take their default."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(arguments, name) for name in names if name in arguments})


def check_num_steps(num_steps: int, num_train_timesteps: int | None) -> None:
    """Raises UserError if there are more steps than the schedule has timesteps (None: unknown)."""
    if num_train_timesteps is not None and not 1 <= num_steps <= num_train_timesteps:
        raise UserError(
            f"num_steps must be from 1 to {num_train_timesteps}, the timesteps of the schedule, "
            f"got {num_steps}; 50 is usual."
        )


def add_arguments(
    parser: argparse.ArgumentParser, fields: Sequence[str] = (), **defaults: Any
) -> None:
    """Adds the flags of `Sampling` as a group; `Sampling.from_arguments` reads them.

    Args:
        parser: gets --steps, --guidance, --guidance-rescale, --sampler, --eta and --seed, each
            stored under the name of its field.
        fields: the names of those that are added; empty for all.
        defaults: by name of the field, in place of its own.
    """
    group = parser.add_argument_group("sampling")
    for field in dataclasses.fields(Sampling):
        if fields and field.name not in fields:
            continue
        default = defaults.get(field.name, field.default)
        shown = "" if default is None else " (default %(default)s)"
        group.add_argument(
            field.metadata["flag"],
            dest=field.name,
            type=float if field.default is None else type(field.default),
            default=default,
            metavar=field.metadata["flag"].split("-")[-1].upper(),
            help=field.metadata["help"] + shown,
        )
