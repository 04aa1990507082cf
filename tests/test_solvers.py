"""Every sampler against diffusers' own, step by step, and by what it must do."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from escherjax.errors import UserError
from escherjax.models.diffusion import samplers, schedule, solvers
from escherjax.models.diffusion.sampling import SAMPLERS, Sampling
from escherjax.models.diffusion.schedule import NoiseSchedule

SHAPE = (2, 3, 4, 4, 4)
FIELDS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
THEIRS = {
    "dpmpp_2m": (
        diffusers.DPMSolverMultistepScheduler,
        {"timestep_spacing": "trailing", "final_sigmas_type": "zero"},
    ),
    "unipc": (
        diffusers.UniPCMultistepScheduler,
        {"timestep_spacing": "trailing", "final_sigmas_type": "zero"},
    ),
}


def _network(x, t, xp):
    """A smooth stand-in whose output depends on everything."""
    return 0.5 * xp.tanh(x + 0.3) + 0.1 * xp.sin(0.01 * t + x)


def _ours(made, start, num_steps, sampler, eta=0.0, **options):
    def predict(x, t):
        return _network(x, t[0].astype(jnp.float32), jnp)

    run = jax.jit(
        lambda x: samplers.sample(
            made, predict, x, Sampling(num_steps, sampler=sampler, eta=eta), trace=True, **options
        )
    )
    return run(start)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("num_steps", [1, 2, 10, 50])
@pytest.mark.parametrize("sampler", list(THEIRS))
def test_multistep_samplers_equal_diffusers(sampler, num_steps, prediction, rng):
    start = rng.normal(size=SHAPE).astype(np.float32)
    kind, options = THEIRS[sampler]
    theirs = kind(1000, **FIELDS, prediction_type=prediction, **options)
    theirs.set_timesteps(num_steps)
    made = NoiseSchedule.from_config(prediction_type=prediction)
    _, every = _ours(made, start, num_steps, sampler)
    table = solvers.make_table(made, Sampling(num_steps, sampler=sampler))
    np.testing.assert_array_equal(table.timesteps, theirs.timesteps)
    x = torch.from_numpy(start)
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(_network(x, float(t), torch), t, x).prev_sample
        # Their coefficients are float32, ours were float64: claims at alpha = 0.07 are divided by
        # it, and noise levels are differences of near logarithms.
        np.testing.assert_allclose(every[i], x, atol=2e-5, rtol=2e-5, err_msg=f"step {i}")


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_with_eta_equals_diffusers(spacing, eta, rng):
    start = rng.normal(size=SHAPE).astype(np.float32)
    fresh = rng.normal(size=(10, *SHAPE)).astype(np.float32)
    theirs = diffusers.DDIMScheduler(
        1000,
        **FIELDS,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing=spacing,
    )
    theirs.set_timesteps(10)
    made = NoiseSchedule.from_config(timestep_spacing=spacing)
    _, every = _ours(
        made, start, 10, "ddim", eta=eta, noise_of_step=lambda i: jnp.asarray(fresh)[i]
    )
    x = torch.from_numpy(start)
    for i, t in enumerate(theirs.timesteps):
        prediction = _network(x, float(t), torch)
        noise = torch.from_numpy(fresh[i])
        x = theirs.step(prediction, t, x, eta=eta, variance_noise=noise).prev_sample
        # float32 on both sides; the largest divisor is alpha = 0.07
        np.testing.assert_allclose(every[i], x, atol=1e-4, rtol=1e-4, err_msg=f"step {i}")


def test_a_schedule_without_signal_at_its_end_equals_diffusers(rng):
    theirs = diffusers.DDIMScheduler(
        1000,
        **FIELDS,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )
    made = schedule.from_diffusers(dict(theirs.config))
    assert made.alphas_cumprod[-1] == 0
    assert made.alphas_cumprod[0] == pytest.approx(float(theirs.alphas_cumprod[0]), rel=1e-6)
    # they take the cumulative product of float32 ratios of a thousand steps
    np.testing.assert_allclose(made.alphas_cumprod, theirs.alphas_cumprod, rtol=2e-4, atol=1e-7)
    assert schedule.to_diffusers(made)["rescale_betas_zero_snr"]
    theirs.set_timesteps(8)
    start = rng.normal(size=SHAPE).astype(np.float32)
    _, every = _ours(made, start, 8, "ddim")
    x = torch.from_numpy(start)
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(_network(x, float(t), torch), t, x).prev_sample
        np.testing.assert_allclose(every[i], x, atol=2e-4, rtol=2e-4, err_msg=f"step {i}")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_an_infallible_network_is_believed(sampler, zero_snr, rng):
    """Whoever always knows the clean latents ends at them, from any noise, without a NaN."""
    made = NoiseSchedule.from_config(
        prediction_type="sample",
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_snr,
    )
    clean, start = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    for num_steps in (1, 2, 3, 7):
        sampling = Sampling(num_steps, sampler=sampler)
        final = samplers.sample(made, lambda x, t: jnp.asarray(clean), start, sampling)
        np.testing.assert_allclose(final, clean, atol=1e-5)  # rounding of a few products


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc"])
def test_higher_orders_converge_faster(sampler, rng):
    """Against DDIM with many steps, as the solution of the equation they all approximate."""
    made = NoiseSchedule.from_config(set_alpha_to_one=True, timestep_spacing="trailing")
    start = rng.normal(size=SHAPE).astype(np.float32)
    exact, _ = _ours(made, start, 1000, "ddim")

    def error(name, num_steps):
        return float(jnp.abs(_ours(made, start, num_steps, name)[0] - exact).mean())

    assert error(sampler, 20) < 0.5 * error("ddim", 20)


def test_eta_needs_ddim_noise_and_a_range():
    made = NoiseSchedule.from_config()
    for sampler, eta, said in (
        ("dpmpp_2m", 0.5, "eta must be 0 with sampler 'dpmpp_2m'"),
        ("ddim", -0.1, "eta.*got -0.1"),
        ("ddim", 1.5, "eta.*got 1.5"),
        ("euler", 0.0, "one of ddim, dpmpp_2m, unipc, got 'euler'"),
    ):
        with pytest.raises(UserError, match=said):
            Sampling(5, sampler=sampler, eta=eta)
    with pytest.raises(UserError, match="noise_of_step"):
        samplers.sample(made, lambda x, t: x, jnp.zeros((1, 2)), Sampling(5, eta=0.5))


def test_a_signal_less_end_refuses_what_cannot_start_there():
    for fields, said in (
        ({"prediction_type": "epsilon", "timestep_spacing": "trailing"}, "'epsilon'"),
        ({"prediction_type": "v_prediction"}, "'leading'"),
    ):
        with pytest.raises(UserError, match=said):
            NoiseSchedule.from_config(rescale_betas_zero_snr=True, **fields)


def test_guidance_rescale_brings_back_the_deviation_of_each_view(rng):
    def predict(latents, timesteps):
        return jnp.stack([latents + 2.0, latents * 2.0 + 2.0], axis=1)

    latents = jnp.asarray(rng.normal(size=(1, 3, 4, 4, 4)), jnp.float32)
    t = jnp.array([5])

    def guided(rescale):
        return samplers.guide(predict, Sampling(5, 3.0, rescale))(latents, t)

    conditional = predict(latents, t)[:, 1]
    plain, full, half = guided(0.0), guided(1.0), guided(0.5)
    axes = (-3, -2, -1)
    np.testing.assert_allclose(full.std(axes), conditional.std(axes), rtol=1e-5)
    assert (plain.std(axes) > 1.9 * conditional.std(axes)).all()
    np.testing.assert_allclose(half, (plain + full) / 2, atol=1e-5)  # rounding
    with pytest.raises(UserError, match="guidance_rescale.*got 2"):
        guided(2)
