"""The noise schedule: how much noise each timestep carries, and what the network is asked for.

x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise, with abar_t the product of 1 - beta_s over s <= t
(DDPM, arXiv 2006.11239, eq. 4).

All arithmetic here is float32, whatever the dtype of the network.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from escherjax.errors import UserError

_BETA_SCHEDULES = ("scaled_linear", "linear")
_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "trailing")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["betas", "alphas_cumprod"],
    meta_fields=[
        "beta_start",
        "beta_end",
        "beta_schedule",
        "prediction_type",
        "steps_offset",
        "set_alpha_to_one",
        "timestep_spacing",
        "rescale_betas_zero_snr",
    ],
)
@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of all training timesteps, and how predictions and sampling steps are read."""

    betas: np.ndarray  # [num_train_timesteps] float32
    alphas_cumprod: np.ndarray  # [num_train_timesteps] float32
    beta_start: float  # what the arrays were made from, as are the next two
    beta_end: float
    beta_schedule: str
    # What the network predicts: "epsilon" (the noise), "v_prediction", or "sample" (the clean
    # latents; pixels without a VAE learn fastest so, arXiv 2511.13720)
    prediction_type: str
    steps_offset: int  # added to every sampling timestep
    set_alpha_to_one: bool  # the last sampling step goes to no noise at all; else to abar_0
    timestep_spacing: str  # of DDIM, "leading" or "trailing"; see `solvers.spaced_timesteps`
    rescale_betas_zero_snr: bool  # the last timestep is pure noise (arXiv 2305.08891)

    @classmethod
    def from_config(
        cls,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        prediction_type: str = "epsilon",
        steps_offset: int = 1,
        set_alpha_to_one: bool = False,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> NoiseSchedule:
        """Makes the schedule; the defaults are those of Stable Diffusion 1.5 and of EscherNet.

        "linear" spaces beta evenly, "scaled_linear" its square root (LDM, arXiv 2112.10752).
        rescale_betas_zero_snr shifts and stretches sqrt(abar) so that its last value is 0, its
        first the same (arXiv 2305.08891, algorithm 1); there, predictions of the noise say nothing
        and only "trailing" timesteps start, so both are required to fit.
        Raises UserError on values outside their range.
        """
        if beta_schedule not in _BETA_SCHEDULES:
            raise UserError(
                f"beta_schedule must be one of {_BETA_SCHEDULES}, got {beta_schedule!r}."
            )
        if prediction_type not in _PREDICTION_TYPES:
            raise UserError(
                f"prediction_type must be one of {_PREDICTION_TYPES}, got {prediction_type!r}."
            )
        if num_train_timesteps < 2:
            raise UserError(f"num_train_timesteps must be at least 2, got {num_train_timesteps}.")
        if not 0.0 < beta_start <= beta_end < 1.0:
            raise UserError(
                f"beta_start {beta_start} and beta_end {beta_end} must satisfy "
                f"0 < beta_start <= beta_end < 1."
            )
        if steps_offset < 0:
            raise UserError(f"steps_offset must be 0 or more, got {steps_offset}.")
        if timestep_spacing not in TIMESTEP_SPACINGS:
            raise UserError(
                f"timestep_spacing must be one of {TIMESTEP_SPACINGS}, got {timestep_spacing!r}."
            )
        if rescale_betas_zero_snr and prediction_type == "epsilon":
            raise UserError(
                "rescale_betas_zero_snr with prediction_type 'epsilon': from pure noise, the noise "
                "tells nothing of the picture. Take 'v_prediction' or 'sample'."
            )
        if rescale_betas_zero_snr and timestep_spacing != "trailing":
            raise UserError(
                "rescale_betas_zero_snr with timestep_spacing 'leading', which never starts at the "
                "last timestep. Take 'trailing'."
            )
        if beta_schedule == "scaled_linear":
            betas = _linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        else:
            betas = _linspace(beta_start, beta_end, num_train_timesteps)
        alphas_cumprod = np.cumprod(np.float32(1) - betas, dtype=np.float64)
        if rescale_betas_zero_snr:
            signal = np.sqrt(alphas_cumprod)
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
            alphas_cumprod = signal**2
            betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
        return cls(
            betas=betas.astype(np.float32),
            alphas_cumprod=alphas_cumprod.astype(np.float32),
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            prediction_type=prediction_type,
            steps_offset=steps_offset,
            set_alpha_to_one=set_alpha_to_one,
            timestep_spacing=timestep_spacing,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )

    @property
    def num_train_timesteps(self) -> int:
        """Number of noise levels; timesteps run from 0 to one less."""
        return self.betas.shape[0]


def _linspace(start: float, stop: float, num: int) -> np.ndarray:
    """Evenly spaced float32 values, rounded as torch.linspace rounds: the step is a float32.

    Counting from the nearer end with one rounding per value gives published schedules bit for bit;
    numpy's own linspace is up to 3 units in the last place away.
    """
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(num - 1))
    index = np.arange(num)
    from_start = np.float64(first) + step * index
    from_stop = np.float64(last) - step * (num - 1 - index)
    return np.where(index < num // 2, from_start, from_stop).astype(np.float32)


def from_diffusers(config: Mapping[str, Any]) -> NoiseSchedule:
    """Reads a diffusers `scheduler_config.json` as DDIMScheduler would, whatever class it names.

    Missing keys take DDIMScheduler's defaults. Keys that do not act in deterministic DDIM (such as
    `variance_type`, `skip_prk_steps`) are ignored. Raises UserError on settings that would
    change the samples and are not supported, rather than ignoring them.
    """
    required = {
        "clip_sample": (True, False),  # (diffusers' default, the only supported value)
        "thresholding": (False, False),
        "trained_betas": (None, None),
    }
    for key, (default, supported) in required.items():
        found = config.get(key, default)
        if found != supported:
            where = "set" if key in config else "missing, which diffusers reads"
            raise UserError(
                f"scheduler_config.json: {key} is {where} as {found!r}; only {supported!r} is "
                f"supported. If the weights were trained so, write it into the file."
            )
    fields = {name: config.get(name, default) for name, default in _DDIM_DEFAULTS.items()}
    wrong = [
        f"{name} must be a value like {default!r}, got {fields[name]!r}"
        for name, default in _DDIM_DEFAULTS.items()
        if not _is_like(fields[name], default)
    ]
    if wrong:
        raise UserError(f"scheduler_config.json: {'; '.join(wrong)}. Correct the file.")
    return NoiseSchedule.from_config(**fields)


# What DDIMScheduler takes for the fields that a file leaves out.
_DDIM_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
}
_MOST_TIMESTEPS = 100_000  # a larger table of noise levels would only fill the memory


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default) and (type(value) is not int or value <= _MOST_TIMESTEPS)


def to_diffusers(schedule: NoiseSchedule) -> dict[str, Any]:
    """Writes the content of a `scheduler_config.json` for diffusers' DDIMScheduler."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.beta_schedule,
        "trained_betas": None,
        "prediction_type": schedule.prediction_type,
        "clip_sample": False,
        "thresholding": False,
        "rescale_betas_zero_snr": schedule.rescale_betas_zero_snr,
        "timestep_spacing": schedule.timestep_spacing,
        "steps_offset": schedule.steps_offset,
        "set_alpha_to_one": schedule.set_alpha_to_one,
    }


def add_noise(schedule: NoiseSchedule, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Noises clean latents to timestep t: sqrt(abar_t) x + sqrt(1 - abar_t) noise, float32.

    x, noise: [B, ...]; t: int [B], or any number of leading axes of x.
    """
    signal, sigma = _signal_and_sigma(schedule, t, x)
    return signal * x + sigma * noise


def training_target(
    schedule: NoiseSchedule, x: jax.Array, noise: jax.Array, t: jax.Array
) -> jax.Array:
    """What the network should predict from the noised x: the noise, v, or x itself.

    v = sqrt(abar_t) noise - sqrt(1 - abar_t) x (Progressive Distillation, arXiv 2202.00512,
    appendix D). Shapes as in `add_noise`.
    """
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return x
    signal, sigma = _signal_and_sigma(schedule, t, x)
    return signal * noise - sigma * x


def sample_from_prediction(
    schedule: NoiseSchedule, prediction: jax.Array, t: jax.Array, x_t: jax.Array
) -> jax.Array:
    """The clean latents (x0) that a prediction for x_t at timestep t stands for, not clipped."""
    if schedule.prediction_type == "sample":
        return prediction
    signal, sigma = _signal_and_sigma(schedule, t, x_t)
    if schedule.prediction_type == "epsilon":
        return (x_t - sigma * prediction) / signal
    return signal * x_t - sigma * prediction


def _signal_and_sigma(
    schedule: NoiseSchedule, t: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """sqrt(abar_t) and sqrt(1 - abar_t), float32, with axes added to multiply x."""
    t = jnp.asarray(t)
    abar = jnp.asarray(schedule.alphas_cumprod)[t]
    abar = abar.reshape(t.shape + (1,) * (x.ndim - t.ndim))
    return jnp.sqrt(abar), jnp.sqrt(1 - abar)
