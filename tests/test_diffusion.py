"""The noise schedule, DDIM and guidance: against the original's numbers and by their properties."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from escherjax.errors import UserError
from escherjax.models.diffusion import samplers, schedule, solvers
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.from_config()
V_SCHEDULE = NoiseSchedule.from_config(prediction_type="v_prediction")
X_SCHEDULE = NoiseSchedule.from_config(prediction_type="sample")


def _noisy(rng, t, shape=(3, 2, 4, 6, 4)):
    x, noise = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    return x, noise, schedule.add_noise(SCHEDULE, x, noise, t)


def test_schedule_equals_the_published_one_bit_for_bit(golden):
    _, folder, arrays = golden
    read = schedule.from_diffusers(
        json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    )
    for made in (SCHEDULE, read):
        np.testing.assert_array_equal(made.betas, arrays["ddim/betas"])
        np.testing.assert_array_equal(made.alphas_cumprod, arrays["ddim/alphas_cumprod"])
    exact = arrays["ddim/alphas_cumprod_float64_exact"]
    np.testing.assert_allclose(SCHEDULE.alphas_cumprod, exact, rtol=3e-6)
    assert read.steps_offset == 1 and not read.set_alpha_to_one


def test_schedule_is_read_back_as_written():
    written = NoiseSchedule.from_config(
        500, 0.001, 0.02, "linear", "v_prediction", steps_offset=0, set_alpha_to_one=True
    )
    read = schedule.from_diffusers(json.loads(json.dumps(schedule.to_diffusers(written))))
    np.testing.assert_array_equal(read.alphas_cumprod, written.alphas_cumprod)
    np.testing.assert_allclose(read.betas, np.linspace(0.001, 0.02, 500), rtol=1e-5)
    assert (read.prediction_type, read.steps_offset) == ("v_prediction", 0)
    assert read.set_alpha_to_one


@pytest.mark.parametrize(
    "key, value",
    [
        ("clip_sample", True),
        ("thresholding", True),
        ("timestep_spacing", "linspace"),
        ("rescale_betas_zero_snr", True),
        ("trained_betas", [0.1, 0.2]),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("prediction_type", "flow"),
        ("beta_end", 1.5),
        ("steps_offset", -1),
        ("num_train_timesteps", 1),
    ],
)
def test_scheduler_settings_that_cannot_be_honoured_are_refused(key, value):
    config = schedule.to_diffusers(SCHEDULE)
    schedule.from_diffusers(config)
    with pytest.raises(UserError, match=key):
        schedule.from_diffusers({**config, key: value})


def test_absent_clip_sample_means_clipping_to_diffusers_and_is_refused():
    config = schedule.to_diffusers(SCHEDULE)
    del config["clip_sample"]
    with pytest.raises(UserError, match="clip_sample is missing"):
        schedule.from_diffusers(config)


def test_added_noise_equals_the_original(golden):
    _, _, arrays = golden
    noisy = schedule.add_noise(
        SCHEDULE, arrays["ddpm/x"], arrays["ddpm/noise"], arrays["ddpm/t"].astype(np.int32)
    )
    np.testing.assert_allclose(noisy, arrays["ddpm/noisy"], atol=1e-6, rtol=0)


def test_noise_level_belongs_to_the_scene_and_is_shared_by_its_views(rng):
    t = jnp.array([3, 500, 999])
    x, noise, noisy = _noisy(rng, t)
    for scene in range(3):
        abar = float(SCHEDULE.alphas_cumprod[int(t[scene])])
        expected = abar**0.5 * x[scene] + (1 - abar) ** 0.5 * noise[scene]
        np.testing.assert_allclose(noisy[scene], expected, atol=1e-6)
    per_view = jnp.broadcast_to(t[:, None], (3, 2))
    np.testing.assert_array_equal(schedule.add_noise(SCHEDULE, x, noise, per_view), noisy)


@pytest.mark.parametrize("made", [SCHEDULE, V_SCHEDULE, X_SCHEDULE], ids=["epsilon", "v", "x"])
def test_the_training_target_converts_back_to_the_sample(made, rng):
    t = jnp.array([0, 300, 999])
    x, noise, noisy = _noisy(rng, t)
    target = schedule.training_target(made, x, noise, t)
    claimed_x = schedule.sample_from_prediction(made, target, t, noisy)
    np.testing.assert_allclose(claimed_x, x, atol=2e-5)


@pytest.mark.parametrize("num_steps", [1, 3, 5, 10, 25, 50, 100])
def test_leading_timesteps_equal_the_original(golden, num_steps):
    _, _, arrays = golden
    found = solvers.spaced_timesteps(SCHEDULE, num_steps, "leading")
    np.testing.assert_array_equal(found, arrays[f"ddim/timesteps_{num_steps}"])
    assert found.dtype == np.int32


def test_leading_timesteps_of_uneven_numbers_keep_a_whole_stride():
    found = solvers.spaced_timesteps(SCHEDULE, 300, "leading")
    np.testing.assert_array_equal(found, np.arange(898, 0, -3))


def test_as_many_sampling_steps_as_timesteps_stay_in_the_table():
    found = solvers.spaced_timesteps(SCHEDULE, 1000, "leading")
    assert found[0] == 999 and found[-1] == 1 and len(found) == 1000
    assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(num_steps):
    with pytest.raises(UserError, match=str(num_steps)):
        solvers.spaced_timesteps(SCHEDULE, num_steps, "leading")


def test_ddim_with_prescribed_noise_equals_the_original(golden):
    _, _, arrays = golden
    steps = jnp.asarray(arrays["ddim/timesteps_5"], jnp.int32)
    prescribed = jnp.asarray(arrays["ddim/eps"])  # [5, B, ...]

    def predict(latents, t):
        assert t.shape == latents.shape[:1]
        return prescribed[jnp.argmax(steps == t[0])]

    run = jax.jit(lambda x: samplers.sample(SCHEDULE, predict, x, Sampling(5), trace=True))
    final, every = run(arrays["ddim/x0"])
    np.testing.assert_allclose(every, arrays["ddim/traj"], atol=5e-5, rtol=0)
    np.testing.assert_array_equal(final, every[-1])


def test_ddim_with_the_true_noise_recovers_the_sample(rng):
    clean, noise, _ = _noisy(rng, jnp.array([0, 0, 0]))
    start = schedule.add_noise(SCHEDULE, clean, noise, jnp.full((3,), 901))
    to_one = NoiseSchedule.from_config(set_alpha_to_one=True)
    for made, level in ((to_one, None), (SCHEDULE, 0)):
        final = samplers.sample(made, lambda x, t: noise, start, Sampling(10))
        left = clean
        if level is not None:
            left = schedule.add_noise(SCHEDULE, clean, noise, jnp.full((3,), level))
        np.testing.assert_allclose(final, left, atol=5e-5)
    assert float(jnp.abs(left - clean).max()) > 1e-2  # abar_0 is not 1: a trace of noise stays


def test_v_epsilon_and_x_predictions_sample_alike(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 4)), jnp.float32)

    def epsilon(latents, t):
        return jnp.tanh(latents) * 0.5

    def sample(latents, t):
        abar = jnp.asarray(SCHEDULE.alphas_cumprod)[t].reshape(-1, 1, 1, 1, 1)
        return (latents - jnp.sqrt(1 - abar) * epsilon(latents, t)) / jnp.sqrt(abar)

    def v(latents, t):
        abar = jnp.asarray(SCHEDULE.alphas_cumprod)[t].reshape(-1, 1, 1, 1, 1)
        noise, clean = epsilon(latents, t), sample(latents, t)
        return jnp.sqrt(abar) * noise - jnp.sqrt(1 - abar) * clean

    by_epsilon = samplers.sample(SCHEDULE, epsilon, x, Sampling(4))
    by_v = samplers.sample(V_SCHEDULE, v, x, Sampling(4))
    by_x = samplers.sample(X_SCHEDULE, sample, x, Sampling(4))
    np.testing.assert_allclose(by_v, by_epsilon, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_x, by_epsilon, rtol=1e-4, atol=1e-4)


def test_sampling_in_16_bits_keeps_float32_latents(rng):
    noise = jnp.asarray(rng.normal(size=(1, 2, 4, 4, 4)), jnp.bfloat16)
    final = samplers.sample(SCHEDULE, lambda x, t: noise, noise, Sampling(2))
    assert final.dtype == jnp.float32
    wide = noise.astype(jnp.float32)
    expected = samplers.sample(SCHEDULE, lambda x, t: wide, wide, Sampling(2))
    np.testing.assert_array_equal(final, expected)


def test_guidance_extrapolates_from_the_unconditional_prediction(rng):
    uncond, cond = (jnp.asarray(rng.normal(size=(2, 3, 2, 2, 4)), jnp.float32) for _ in range(2))

    def predict(latents, timesteps):
        pair = jnp.stack([uncond, cond], axis=1)
        return pair + latents[:, None] + timesteps.reshape(-1, 1, 1, 1, 1, 1)

    latents = jnp.asarray(rng.normal(size=(2, 3, 2, 2, 4)), jnp.float32)
    found = samplers.guide(predict, Sampling(guidance_scale=3.0))(latents, jnp.array([3, 4]))
    shift = latents + np.array([3, 4]).reshape(-1, 1, 1, 1, 1)
    np.testing.assert_allclose(found, uncond + 3.0 * (cond - uncond) + shift, atol=1e-5)  # rounding


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), "3"])
def test_a_scale_that_is_no_scale_is_refused(scale):
    with pytest.raises(UserError, match="guidance_scale.*finite number of at least 0"):
        Sampling(guidance_scale=scale)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_of_one_or_less_is_the_prediction_itself(scale):
    def predict(latents, timesteps):
        return latents + 1

    assert samplers.guide(predict, Sampling(guidance_scale=scale)) is predict
    with pytest.raises(UserError, match="guidance_rescale.*got 2"):
        Sampling(guidance_scale=scale, guidance_rescale=2)


def test_schedule_passes_through_jit_as_an_argument():
    noisy = jax.jit(schedule.add_noise)(
        SCHEDULE, jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.array([0, 999])
    )
    np.testing.assert_allclose(noisy[:, 0] ** 2, SCHEDULE.alphas_cumprod[[0, 999]], rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_train_timesteps": "x"},
        {"num_train_timesteps": None},
        {"beta_start": "x"},
        {"num_train_timesteps": 10**12},
        {"beta_end": None},
        {"steps_offset": 1.5},
        {"set_alpha_to_one": 1},
        {"prediction_type": []},
    ],
)
def test_scheduler_fields_of_other_types_are_refused_by_name(fields):
    config = schedule.to_diffusers(schedule.NoiseSchedule.from_config())
    ((name, value),) = fields.items()
    with pytest.raises(UserError, match=f"scheduler_config.json: {name} must"):
        schedule.from_diffusers({**config, name: value})
