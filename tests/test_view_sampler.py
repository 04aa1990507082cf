"""Padded numbers of views, batches of scenes over devices, and the callback of a step."""

import numpy as np
import pytest

from escherjax.cameras import Cameras, from_spherical
from escherjax.devices import mesh as sharding
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.models.diffusion.sampling import Sampling
from escherjax.sample import scene_batch
from escherjax.sample.pipeline import Pipeline
from tests.helpers.random_models import random_params
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("compiled_fast")

# Two steps of a network of random parameters, pictures in [0, 1]: float32 rounding, which guidance
# multiplies by five or so. 3e-6 is seen; a view that should not be seen changes them by 0.05.
SAME = {"rtol": 0, "atol": 3e-5}


def make_pipeline(mesh=None):
    config = tiny_config(
        resolution=8,
        unet__layers_per_block=1,
        unet__attention="(False,)",
        latents__kind="vae",  # whose latents are scaled
        latents__vae__block_channels="(8,)",
        latents__vae__layers_per_block=1,
        latents__vae__norm_groups=4,
    )
    model = eschernet.from_config(config)
    params = random_params(model.parameter_shapes(8), np.random.default_rng(0))
    return Pipeline(model, params, 8, mesh=mesh)


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def views():
    """(images [6, 16, 16, 3], 6 reference cameras, 18 target cameras)."""
    rng = np.random.default_rng(0)
    c2w = from_spherical(rng.uniform(0.5, 2.5, 24), rng.uniform(-3, 3, 24), np.full(24, 2.0))
    return rng.random((6, 16, 16, 3), np.float32), Cameras(c2w[:6]), Cameras(c2w[6:])


SETTINGS = {"num_steps": 2, "eta": 0.5}  # the noise that eta adds must not change either


@pytest.fixture(scope="module")
def two_sizes(pipe, views):
    """Views from (5, 17) and from (6, 18) of the same cameras."""
    images, references, targets = views
    return [
        pipe.generate(images[:n], references[:n], targets[:m], seed=m, **SETTINGS)
        for n, m in ((5, 17), (6, 18))
    ]


def test_numbers_of_views_in_one_bucket_share_a_program(pipe, two_sizes):
    assert pipe._program.num_programs == 1
    assert [len(made) for made in two_sizes] == [17, 18]


def test_padded_views_equal_unpadded_ones(pipe, views, two_sizes):
    images, references, targets = views
    exact = pipe.generate_batch(
        images[None, :5],
        references[None, :5],
        targets[None, :17],
        Sampling(guidance_scale=3.0, seed=17, **SETTINGS),
    )
    np.testing.assert_allclose(two_sizes[0], exact[0], **SAME)
    assert exact.std() > 0.1
    # The sixth reference and the eighteenth target are seen where they are real.
    six = pipe.generate(images, references, targets[:17], seed=17, **SETTINGS)
    assert np.abs(six - two_sizes[0]).max() > 0.03
    eighteen = pipe.generate(images[:5], references[:5], targets, seed=17, **SETTINGS)
    assert np.abs(eighteen[:17] - two_sizes[0]).max() > 0.03


def test_a_batch_over_devices_equals_scene_by_scene(views, two_sizes):
    """Three scenes on two groups of two devices, and nonsense in the place of padding."""
    images, references, targets = views
    images, reference_c2w, target_c2w = (
        np.stack([x] * 3) for x in (images, references.c2w, targets.c2w)
    )
    images[0, 5], reference_c2w[0, 5], target_c2w[0, 17] = np.nan, np.inf, 0
    many = make_pipeline(sharding.view_mesh(2, scene_devices=2))
    made = many.generate_batch(
        images,
        Cameras(reference_c2w),
        Cameras(target_c2w),
        Sampling(guidance_scale=3.0, **SETTINGS),
        num_references=[5, 6, 6],
        num_targets=[17, 18, 18],
        seeds=[17, 18, 19],
    )
    np.testing.assert_allclose(made[0, :17], two_sizes[0], **SAME)
    np.testing.assert_array_equal(made[0, 17], 0)
    np.testing.assert_allclose(made[1], two_sizes[1], **SAME)
    assert np.abs(made[2] - made[1]).max() > 0.1  # another seed


def test_every_step_is_told_and_can_be_the_last(pipe, views):
    """The solver ends without noise, so that its last estimate is the result."""
    images, references, targets = views
    arguments = images[:5], references[:5], targets[:17]
    seen = []
    made = pipe.generate(
        *arguments, num_steps=3, sampler="dpmpp_2m", on_step=lambda *told: seen.append(told)
    )
    assert [told[:2] for told in seen] == [(1, 3), (2, 3), (3, 3)]
    latents = [told[2] for told in seen]
    decoded = np.clip(pipe.decode_latents(latents[-1]) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(decoded, made, atol=1e-6)
    assert np.abs(latents[1] - latents[2]).max() > 1e-3

    steps = []

    def stop(step, num_steps, clean_latents):
        steps.append(step)
        if step == 2:
            raise TimeoutError("that will do")

    with pytest.raises(TimeoutError, match="that will do"):
        pipe.generate(*arguments, num_steps=3, sampler="dpmpp_2m", on_step=stop)
    assert steps == [1, 2]


def test_buckets_hold_every_number_and_waste_little():
    for bucket, steps in ((scene_batch.reference_bucket, 2), (scene_batch.target_bucket, 8)):
        for count in range(1, 300):
            size = bucket(count)
            assert count <= size < count * (1 + 1 / steps) and bucket(size) == size
    references = {scene_batch.reference_bucket(n) for n in range(1, 40)}
    assert sorted(references) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
    targets = {scene_batch.target_bucket(n) for n in range(15, 70)}
    assert sorted(targets) == [15, *sorted({25, *range(16, 32, 2)}), *range(32, 64, 4), 64, 72]
    assert scene_batch.target_bucket(17, view_devices=4) == 20
    assert [scene_batch.target_bucket(n) for n in (25, 99, 100, 101, 200)] == [
        25,
        104,
        100,
        104,
        200,
    ]


def test_filling_repeats_the_last_real_view():
    views = np.arange(8).reshape(2, 4)
    filled = scene_batch.fill(views, np.array([2, 4]), 5)
    np.testing.assert_array_equal(filled, [[0, 1, 1, 1, 1], [4, 5, 6, 7, 7]])
    np.testing.assert_array_equal(scene_batch.fill(views, None, 4), views)


def test_wrong_batches_are_refused_with_the_reason(pipe, views):
    images, references, targets = (x[None] for x in views)
    mirrored = Cameras(targets.c2w * np.array([1, 1, -1, 1], np.float32))
    for arguments, named, reason in [
        ((images[0], references, targets), {}, r"\[B, N, H, H, 3\]"),
        ((images, references[0], targets), {}, r"reference cameras.*shape \(6, 4, 4\)"),
        ((images, references, targets[:, :0]), {}, "a view at least"),
        ((images[:, :5], references, targets), {}, "one for each of 5 reference images"),
        ((images, references, mirrored), {}, "scene 0: target cameras.*mirrored"),
        ((images * 255, references, targets), {}, "divide 8-bit values by 255"),
        ((images, references, targets), {"num_references": [7]}, "1 whole numbers from 1 to 6"),
        ((images, references, targets), {"num_targets": [0]}, "from 1 to 18"),
        ((images, references, targets), {"num_targets": [2.0]}, "whole numbers"),
        ((images, references, targets), {"seeds": [1, 2]}, "seeds.*got 2"),
        ((images, references, targets), {"seeds": [-1]}, "seed must be a whole number.*got -1"),
    ]:
        with pytest.raises(UserError, match=reason):
            pipe.generate_batch(*arguments, **named)
    with pytest.raises(UserError, match=r"num_references(.|\n)*num_targets(.|\n)*mirrored"):
        pipe.generate_batch(images, references, mirrored, num_references=[9], num_targets=[1.5])
    with pytest.raises(UserError, match="takes 16 devices; this process has 8"):
        sharding.view_mesh(8, scene_devices=2)
