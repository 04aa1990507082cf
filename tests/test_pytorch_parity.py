"""PyTorch and JAX give the same numbers for the same folder.

Tolerances: both run in float32 with exact products, and differ in the order of sums only. On the
recorded networks that is about 3e-6 of outputs near 1; a guided run of a few steps multiplies it
by the guidance and by up to 1 / sqrt(abar) of the first steps, about 15.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image

import escherjax
from escherjax.cameras import Cameras, from_spherical
from escherjax.models.vae import PixelCodec
from escherjax.pytorch import EscherNetPipeline
from escherjax.pytorch.images import read_images
from escherjax.sample import scene_batch
from tests.helpers.torch_folders import write_folder

torch.set_num_threads(1)


def both_pipelines(folder, cape):
    pytorch = EscherNetPipeline.from_pretrained(folder, cape=cape)
    pytorch.set_progress_bar_config(disable=True)
    return escherjax.load(folder, cape=cape), pytorch


def cameras_of(rng, *shape):
    polar, azimuth = rng.uniform(0.3, 2.8, shape), rng.uniform(-3, 3, shape)
    c2w = from_spherical(polar, azimuth, rng.uniform(1.3, 2.4, shape))
    return Cameras(np.asarray(c2w, np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pipeline"), seed=0)


@torch.no_grad()
def test_each_network_is_the_same(folder, rng):
    jax_side, torch_side = both_pipelines(folder, "6dof")
    images = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    channels_first = torch.from_numpy(images).movedim(-1, 1)
    np.testing.assert_allclose(
        torch_side.encode_images(channels_first), jax_side.encode_images(images), atol=2e-5
    )
    for ours, theirs in zip(
        torch_side.encode_latents(channels_first), jax_side.encode_latents(images), strict=True
    ):
        np.testing.assert_allclose(ours.movedim(1, -1), theirs, atol=2e-5)
    latents = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
    decoded = torch_side.decode_latents(torch.from_numpy(latents).movedim(-1, 1))
    np.testing.assert_allclose(decoded.movedim(1, -1), jax_side.decode_latents(latents), atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("cape", ["6dof", "4dof", "4dof_paper", "none"])
def test_prediction_is_the_same_for_several_scenes(folder, rng, cape):
    jax_side, torch_side = both_pipelines(folder, cape)
    latents = rng.normal(size=(2, 3, 8, 8, 4)).astype(np.float32)
    tokens = rng.normal(size=(2, 2, 16, 32)).astype(np.float32)
    timesteps = np.array([20, 900])
    references, targets = cameras_of(rng, 2, 2), cameras_of(rng, 2, 3)
    expected = jax_side.predict_noise(latents, timesteps, tokens, references, targets)
    out = torch_side.predict_noise(
        torch.from_numpy(latents).movedim(-1, 2),
        torch.from_numpy(timesteps),
        torch.from_numpy(tokens),
        references,
        targets,
    )
    np.testing.assert_allclose(out.movedim(2, -1), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("cape", "prediction_type", "guidance"),
    [
        ("6dof", "epsilon", 1.0),
        ("6dof", "sample", 3.0),
        ("4dof", "epsilon", 3.0),
        ("4dof_paper", "v_prediction", 3.0),
        ("none", "v_prediction", 1.0),
    ],
)
def test_views_are_the_same(tmp_path, rng, cape, prediction_type, guidance):
    folder = write_folder(tmp_path, seed=1, prediction_type=prediction_type)
    jax_side, torch_side = both_pipelines(folder, cape)
    images = rng.uniform(size=(2, 16, 16, 3)).astype(np.float32)
    references, targets = cameras_of(rng, 2), cameras_of(rng, 3)
    latents = rng.normal(size=(3, 8, 8, 4)).astype(np.float32)
    expected = jax_side.generate(
        images, references, targets, num_steps=4, guidance_scale=guidance, initial_latents=latents
    )
    views = torch_side(
        images,
        references,
        targets,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=np.moveaxis(latents, -1, 1),
        output_type="np",
    ).images
    assert ((expected > 0) & (expected < 1)).mean() > 0.3  # clipping does not hide a difference
    np.testing.assert_allclose(views, expected, atol=2e-4)


@torch.no_grad()
def test_pixels_become_latents_in_the_same_order(tmp_path, rng):
    pipe = EscherNetPipeline.from_pretrained(write_folder(tmp_path, seed=0, patch=2))
    images = rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    latents, _ = pipe.encode_latents(torch.from_numpy(images).movedim(-1, 1))
    expected = PixelCodec(2).encode(images)
    np.testing.assert_array_equal(latents.movedim(1, -1), expected)
    np.testing.assert_array_equal(pipe.decode_latents(latents).movedim(1, -1), images)


def test_pictures_are_read_the_same(folder, rng, tmp_path):
    jax_side, _ = both_pipelines(folder, "6dof")
    path = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 256, (40, 30, 4), np.uint8)).save(path)
    expected = scene_batch.reference_pixels([path], jax_side.resolution)
    pixels = read_images([path], jax_side.resolution).movedim(1, -1) / 2 + 0.5
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
