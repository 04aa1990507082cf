"""Plans carried out by a network, and the memory that they are chosen by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import escherjax
from escherjax.cameras import Cameras, from_spherical
from escherjax.config import load_config
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.eschernet import SceneBatch
from escherjax.sample import memory
from escherjax.sample.plans import Pass, Plan, extra_cameras
from tests.helpers.tiny import tiny_config

# The same for all, so that few programs are compiled; eta adds noise at each step.
SETTINGS = {"num_steps": 2, "eta": 1.0}


@pytest.fixture(scope="module")
def pipe():
    config = tiny_config()
    model = eschernet.from_config(config)
    params = model.init(0, config.resolution)
    kernel = params["unet"]["conv_out"]["kernel"]
    # A fresh network predicts zero whatever it sees; this one does not.
    kernel += np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32) * 0.05
    return escherjax.Pipeline(model, params, config.resolution)


def orbit(count):
    return Cameras(from_spherical(1.2, 2 * np.pi * np.arange(count) / count, 1.5))


@pytest.fixture(scope="module")
def scene():
    images = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    return images, Cameras(from_spherical(1.0, np.array([0.1, 2.0]), 1.6))


def test_chunked_with_one_chunk_equals_joint(pipe, scene):
    joint = pipe.generate(*scene, orbit(4), **SETTINGS)
    for plan in ("anchors", "autoregressive", "auto"):
        views = pipe.generate(*scene, orbit(4), **SETTINGS, plan=plan)
        np.testing.assert_array_equal(views, joint)


def test_chunks_share_one_program_and_may_come_in_any_order(pipe, scene):
    targets = orbit(5)
    before = pipe._program.num_programs
    plan = pipe.plan_views(scene[1], targets, "anchors", chunk=2)
    steps = []
    views = pipe.generate(
        *scene, targets, **SETTINGS, plan=plan, on_step=lambda *step: steps.append(step)
    )
    assert [len(one.targets) for one in plan.passes] == [2, 2, 1]
    assert len({one.num_conditioning for one in plan.passes}) > 1
    assert pipe._program.num_programs == before + 1
    first, *rest = plan.passes
    other = Plan("other order", (first, *rest[::-1]))
    again = pipe.generate(*scene, targets, **SETTINGS, plan=other, on_step=lambda *step: None)
    np.testing.assert_array_equal(views, again)
    # Steps are counted over all passes; views that no pass has begun are zeros
    assert [step[:2] for step in steps] == [(i, 6) for i in range(1, 7)]
    begun = [latents.any(axis=(1, 2, 3)) for _, _, latents in steps]
    for i in range(len(plan.passes)):
        assert set(np.flatnonzero(begun[2 * i])) == {
            target for earlier in plan.passes[: i + 1] for target in earlier.targets
        }


def test_noise_belongs_to_the_view_and_not_to_its_place_in_a_pass(pipe, scene):
    """Two equal cameras, each first in its pass: only the noise that eta adds tells them apart."""
    twice = Cameras(orbit(1).c2w[[0, 0]])
    latents = np.zeros((2, *pipe.model.latent_shape(16)), np.float32)
    alone = Plan("alone", (Pass((0, 1), (), (0,)), Pass((0, 1), (), (1,))))
    first, second = pipe.generate(
        *scene, twice, **SETTINGS, plan=alone, min_targets=4, initial_latents=latents
    )
    assert np.abs(first - second).max() > 0.01


def test_few_targets_are_drawn_among_extra_ones(pipe, scene):
    images, cameras = scene
    extra = extra_cameras(cameras.c2w, orbit(2).c2w, 2)
    among = pipe.generate(images, cameras, orbit(2), **SETTINGS, min_targets=4)
    every = Cameras(np.concatenate([orbit(2).c2w, extra]))
    np.testing.assert_array_equal(among, pipe.generate(images, cameras, every, **SETTINGS)[:2])
    with pytest.raises(UserError, match="min_targets.*got -1"):
        pipe.generate(images, cameras, orbit(2), min_targets=-1)


@pytest.mark.parametrize(
    ("num_references", "num_targets", "guidance"),
    [(2, 16, 3.0), pytest.param(24, 2, 1.0, marks=pytest.mark.slow)],
)
def test_the_estimate_is_near_what_the_compiler_reserves(
    pipe, num_references, num_targets, guidance
):
    """Within a quarter: fusion may save an array that the formula counts, or keep one more."""
    model, params = pipe.model, pipe.params

    def views(count, *shape):
        return jax.ShapeDtypeStruct((1, count, *shape), jnp.float32)

    compiled = (
        jax.jit(model.generate, static_argnames="sampling")
        .lower(
            params,
            SceneBatch(
                views(num_references, 16, 16, 3),
                Cameras(views(num_references, 4, 4)),
                Cameras(views(num_targets, 4, 4)),
                views(num_targets, *model.latent_shape(16)),
            ),
            sampling=Sampling(2, guidance),
        )
        .compile()
    )
    estimated = memory.estimate(
        model, params, num_references, num_targets, 16, guidance_scale=guidance
    )
    reserved = compiled.memory_analysis()
    assert estimated.working == pytest.approx(reserved.temp_size_in_bytes, rel=0.25)
    # the VAE's and the encoder's parameters are arguments too, and the views are small
    assert estimated.parameters == pytest.approx(reserved.argument_size_in_bytes, rel=0.1)


def test_the_largest_chunk_fits_and_one_more_does_not(pipe):
    free = 40 * 2**20

    def estimate_of(count):
        return pipe.estimate_memory(3, count)

    chunk = memory.largest_chunk(estimate_of, 1000, free)
    assert estimate_of(chunk).working <= 0.75 * free < estimate_of(chunk + 1).working
    assert memory.largest_chunk(estimate_of, chunk - 1, free) == chunk - 1
    with pytest.raises(UserError, match="One view at a time from 3 needs"):
        memory.largest_chunk(estimate_of, 4, 1000)


def test_a_device_that_tells_no_memory_draws_all_at_once_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    assert memory.largest_chunk(lambda count: None, 7) == 7
    assert "does not report its free memory: all 7 views" in caplog.text


def test_estimates_of_the_full_size_are_near_those_measured():
    """H200, bfloat16 weights, cuDNN attention: 2.5 GiB at (3, 25) and 4.0 at (3, 100) views.

    Measured without decoding. Within a tenth: the formula knows no workspace of convolutions.
    """
    config = load_config("configs/6dof.py", ["--config.attention=cudnn"])
    model = eschernet.from_config(config)
    sizes = {"unet": 859_520_964, "image_encoder": 27_866_496, "vae": 83_653_863}
    params = {name: jax.ShapeDtypeStruct((size,), jnp.bfloat16) for name, size in sizes.items()}
    for num_targets, measured in ((25, 2.5), (100, 4.0)):
        estimated = memory.estimate(model, params, 3, num_targets, 256)
        assert estimated.attention == 0
        total = (estimated.parameters + estimated.denoising) / 2**30
        assert total == pytest.approx(measured, rel=0.1)
