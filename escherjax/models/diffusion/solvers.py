"""Solvers of the sampling equation as tables of numbers, one row a step.

Every solver here is linear in the latents and in the predicted clean latents (x0): a step is a few
coefficients, which follow from the noise levels alone. They are computed once, in float64, and
`samplers.sample` runs any table.

With alpha = sqrt(abar), sigma = sqrt(1 - abar) and lambda = log(alpha / sigma), D_i is the x0
predicted at step i and h_i = lambda_{i+1} - lambda_i.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from escherjax.models.diffusion.sampling import Sampling, check_num_steps
from escherjax.models.diffusion.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class SolverTable:
    """Coefficients of S steps."""

    timesteps: np.ndarray  # int32 [S], noisiest first
    # float32 [S, 5]: weights of (latents, corrected latents of step i - 1, D_i, D_{i-1}, D_{i-2}),
    # whose sum is the corrected latents of step i
    correct: np.ndarray
    # float32 [S, 3]: weights of (corrected latents, D_i, D_{i-1}), whose sum is the next latents
    advance: np.ndarray
    noise: np.ndarray  # float32 [S], standard deviation of the fresh noise added to them


def make_table(schedule: NoiseSchedule, sampling: Sampling) -> SolverTable:
    """The table of a sampler's steps.

    "ddim": arXiv 2010.02502, eq. 12, whose eta adds noise (0 none, 1 as much as DDPM); timesteps
    as the schedule spaces them. "dpmpp_2m": DPM-Solver++(2M), arXiv 2211.01095, algorithm 2.
    "unipc": UniPC of order 2 with B(h) = exp(h) - 1, arXiv 2302.04867. The latter two start at the
    last timestep and end without noise, whatever the schedule asks for.
    Raises UserError for more steps than timesteps.
    """
    if sampling.sampler == "ddim":
        return _ddim(schedule, sampling.num_steps, sampling.eta)
    return _multistep(schedule, sampling.num_steps, corrected=sampling.sampler == "unipc")


def spaced_timesteps(schedule: NoiseSchedule, num_steps: int, spacing: str) -> np.ndarray:
    """Timesteps of a run, noisiest first, int32 [num_steps]; T training timesteps.

    "leading": k * (T // num_steps) + steps_offset for k = num_steps-1 .. 0, not beyond T - 1.
    "trailing": T - 1, and from there in even steps (arXiv 2305.08891, table 2).
    Both as in diffusers. Raises UserError unless 1 <= num_steps <= T.
    """
    num_train = schedule.num_train_timesteps
    check_num_steps(num_steps, num_train)
    if spacing == "trailing":
        steps = np.round(num_train - np.arange(num_steps) * (num_train / num_steps)) - 1
    else:
        steps = np.arange(num_steps)[::-1] * (num_train // num_steps) + schedule.steps_offset
    return np.minimum(steps, num_train - 1).astype(np.int32)


def _ddim(schedule: NoiseSchedule, num_steps: int, eta: float) -> SolverTable:
    steps = spaced_timesteps(schedule, num_steps, schedule.timestep_spacing)
    abar = schedule.alphas_cumprod.astype(np.float64)
    final = 1.0 if schedule.set_alpha_to_one else abar[0]
    here = abar[steps]
    after = np.append(here[1:], final)
    added = eta * np.sqrt((1 - after) / (1 - here) * (1 - here / after))
    direction = np.sqrt(1 - after - added**2)
    kept = direction / np.sqrt(1 - here)
    clean = np.sqrt(after) - kept * np.sqrt(here)
    advance = np.stack([kept, clean, np.zeros(num_steps)], axis=1)
    return _table(steps, advance, noise=added)


def _multistep(schedule: NoiseSchedule, num_steps: int, corrected: bool) -> SolverTable:
    steps = spaced_timesteps(schedule, num_steps, "trailing")
    abar = np.append(schedule.alphas_cumprod[steps].astype(np.float64), 1.0)
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    with np.errstate(divide="ignore"):  # no signal at all, or no noise: an infinite step
        h = np.diff(np.log(alpha) - np.log(sigma))
    advance, correct = np.zeros((num_steps, 3)), np.zeros((num_steps, 5))
    correct[:, 0] = 1.0
    for i in range(num_steps):
        gain = -alpha[i + 1] * np.expm1(-h[i])
        # The last step has no noise left to tell two predictions apart, the first has one only.
        slope = 0.0 if i in (0, num_steps - 1) else 0.5 * h[i] / h[i - 1]
        advance[i] = sigma[i + 1] / sigma[i], gain * (1 + slope), -gain * slope
        if corrected and i + 1 < num_steps:
            ratio = 0.0 if i == 0 else h[i] / h[i - 1]
            correct[i + 1] = _correction(sigma[i + 1] / sigma[i], gain, h[i], ratio, i == 0)
    return _table(steps, advance, correct)


def _correction(
    kept: float, gain: float, h: float, ratio: float, first: bool
) -> tuple[float, float, float, float, float]:
    """UniC: the step before taken again, now that the prediction at its end is known.

    ratio: h over the step before. Solves arXiv 2302.04867, eq. 9, for two predictions in closed
    form, with weights on D_i - D_{i-1} (`newest`) and on (D_{i-2} - D_{i-1}) / r (`older`), where
    r = -1/ratio.
    """
    if first:
        newest, older = 0.5, 0.0
    else:
        scale = np.expm1(-h)
        phi_1 = -scale / h - 1
        phi_2 = -phi_1 / h - 0.5
        b_1, b_2 = phi_1 / scale, 2 * phi_2 / scale
        older = -(b_2 - b_1) * ratio / (1 + ratio)
        newest = b_1 - older
    # (D_{i-2} - D_{i-1}) / r = -ratio (D_{i-2} - D_{i-1})
    return 0.0, kept, gain * newest, gain * (1 - newest + older * ratio), -gain * older * ratio


def _table(
    steps: np.ndarray,
    advance: np.ndarray,
    correct: np.ndarray | None = None,
    noise: np.ndarray | None = None,
) -> SolverTable:
    if correct is None:
        correct = np.zeros((len(steps), 5))
        correct[:, 0] = 1.0
    noise = np.zeros(len(steps)) if noise is None else noise
    return SolverTable(
        steps, correct.astype(np.float32), advance.astype(np.float32), noise.astype(np.float32)
    )
