import jax
import numpy as np
import pytest
from PIL import Image

import escherjax
from escherjax.cameras import Cameras, from_spherical
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.eschernet import SceneBatch
from escherjax.sample import scene_batch
from tests.helpers.golden_cameras import cameras_from_poses
from tests.helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def pipes(golden_dir):
    return {
        name: escherjax.load(golden_dir / f"eschernet-{name}-tiny") for name in ("6dof", "4dof")
    }


def channels_last(array):
    return np.moveaxis(array, -3, -1)


def recorded(golden, pipes, case):
    """(pipeline, images in [0, 1], reference cameras, target cameras, first latents) of a case."""
    name, _, arrays = golden
    images = channels_last(arrays[f"pipeline/{case}/input_images_u8"]) / np.float32(255)
    reference = cameras_from_poses(name, arrays[f"pipeline/{case}/pose_in"][0])
    target = cameras_from_poses(name, arrays[f"pipeline/{case}/pose_out"][0])
    return pipes[name], images, reference, target, channels_last(arrays[f"pipeline/{case}/latents"])


@pytest.mark.parametrize(
    "golden", ["6dof", pytest.param("4dof", marks=pytest.mark.slow)], indirect=True
)
def test_generate_equals_the_original_pipeline(golden, pipes):
    """Five guided steps at 256 pixels; 1e-4 is four times the original's own rounding."""
    pipe, images, reference, target, latents = recorded(golden, pipes, "g3_s5_256")
    views = pipe.generate(
        images, reference, target, num_steps=5, guidance_scale=3.0, initial_latents=latents
    )
    expected = golden[2]["pipeline/g3_s5_256/image_view0"]
    np.testing.assert_allclose(views[:1], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("golden", "case", "num_steps", "guidance", "tolerance"),
    [
        ("6dof", "g3_s50_128", 50, 3.0, 2e-3),
        pytest.param("4dof", "g3_s50_128", 50, 3.0, 2e-3, marks=pytest.mark.slow),
        ("6dof", "g1_s5_128", 5, 1.0, 3e-4),
        ("4dof", "g1_s5_128", 5, 1.0, 3e-4),
    ],
    indirect=["golden"],
)
def test_latents_and_views_equal_the_original_pipeline(
    golden, pipes, case, num_steps, guidance, tolerance
):
    """Tolerances are about five times the original's own float32 rounding."""
    pipe, images, reference, target, latents = recorded(golden, pipes, case)
    tokens = pipe.encode_images(images * 2 - 1)
    run = jax.jit(pipe.model.generate_latents, static_argnames="sampling")
    final = run(
        pipe.params,
        tokens[None],
        SceneBatch(None, reference[None], target[None], latents[None]),
        sampling=Sampling(num_steps, guidance),
    )[0]
    expected = channels_last(golden[2][f"pipeline/{case}/final_latents"])
    np.testing.assert_allclose(final, expected, atol=tolerance)
    views = np.clip(pipe.decode_latents(final / 0.18215) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(views, golden[2][f"pipeline/{case}/images"], atol=1e-4)


def test_predict_noise_is_the_network(golden, pipes):
    name, _, arrays = golden
    case = "unet/b2_i2_o5"
    latents = channels_last(arrays[f"{case}/x"])
    tokens = arrays[f"{case}/ehs"]
    noise = pipes[name].predict_noise(
        latents.reshape(2, 5, *latents.shape[1:]),
        arrays[f"{case}/t"].reshape(2, 5)[:, 0],
        tokens.reshape(2, 2, 49, -1),
        cameras_from_poses(name, arrays[f"{case}/pose_in"]),
        cameras_from_poses(name, arrays[f"{case}/pose_out"]),
    )
    expected = channels_last(arrays[f"{case}/out"])
    np.testing.assert_allclose(noise.reshape(expected.shape), expected, atol=2e-5)


@pytest.fixture(scope="module")
def tiny_pipe():
    """A random network on pixels, of this project's own making."""
    config = tiny_config()
    model = eschernet.from_config(config)
    params = model.init(0, config.resolution)
    kernel = params["unet"]["conv_out"]["kernel"]
    # A fresh network predicts zero whatever it sees; this one does not.
    kernel += np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32) * 0.05
    return escherjax.Pipeline(model, params, config.resolution)


def views_of(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(count, 16, 16, 3)).astype(np.float32)
    c2w = from_spherical(rng.uniform(0.5, 2.5, count), rng.uniform(-3, 3, count), np.full(count, 2))
    return images, Cameras(c2w)


def test_any_number_of_references_and_targets(tiny_pipe):
    for num_references, num_targets in ((1, 1), (1, 3), (4, 2)):
        images, cameras = views_of(num_references)
        _, targets = views_of(num_targets, seed=1)
        views = tiny_pipe.generate(images, cameras, targets, num_steps=2)
        assert views.shape == (num_targets, 16, 16, 3) and views.dtype == np.float32
        assert views.min() >= 0 and views.max() <= 1


def test_same_seed_same_views_and_other_seed_other_views(tiny_pipe):
    images, cameras = views_of(2)
    _, targets = views_of(2, seed=1)
    first, again, other = (
        tiny_pipe.generate(images, cameras, targets, num_steps=2, seed=s) for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_paths_and_pictures_are_read_like_arrays(tiny_pipe, tmp_path):
    images, cameras = views_of(2)
    _, targets = views_of(1, seed=1)
    eight_bit = np.round(images * 255).astype(np.uint8)
    paths = []
    for i, image in enumerate(eight_bit):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    expected = tiny_pipe.generate(eight_bit / np.float32(255), cameras, targets, num_steps=2)
    from_paths = tiny_pipe.generate(paths, cameras, targets, num_steps=2)
    np.testing.assert_array_equal(from_paths, expected)
    np.testing.assert_array_equal(scene_batch.reference_pixels(list(images), 16), images)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    for path, image in zip(paths, eight_bit, strict=True):
        Image.fromarray(np.rot90(image)).save(path, exif=exif)
    for turned in (paths, [Image.open(path) for path in paths]):
        # the pixels themselves, since so few steps of a random network hardly tell references apart
        pixels = scene_batch.reference_pixels(turned, tiny_pipe.resolution)
        np.testing.assert_array_equal(pixels, eight_bit / np.float32(255))
    clear = Image.fromarray(np.zeros((16, 16, 4), np.uint8))
    white = tiny_pipe.generate([clear, clear], cameras, targets, num_steps=2)
    np.testing.assert_array_equal(
        white, tiny_pipe.generate(np.ones_like(images), cameras, targets, num_steps=2)
    )


def test_wrong_input_is_refused_with_the_reason(tiny_pipe, tmp_path):
    images, cameras = views_of(2)
    _, targets = views_of(1, seed=1)
    bad_pose = Cameras(cameras.c2w.copy())
    bad_pose.c2w[1, 0, 0] = np.nan
    mirrored = Cameras(cameras.c2w * np.array([1, 1, -1, 1], np.float32))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for arguments, reason in [
        ((images[:1], cameras, targets), "one for each of 1 reference images"),
        ((images[:0], cameras, targets), "N >= 1"),
        ((images[:, :8], cameras, targets), "must be square"),
        ((images, cameras.c2w, targets), "must be Cameras"),
        (([], cameras, targets), "N >= 1"),
        ((images * 255, cameras, targets), "divide 8-bit values by 255"),
        ((images, bad_pose, targets), "view 1 holds NaN"),
        ((images, mirrored, targets), "mirrored"),
        ((images, cameras, targets[:0]), "a view at least"),
        (([broken, broken], cameras, targets), "broken.png cannot be decoded"),
        (([tmp_path / "none"] * 2, cameras, targets), "image .*none cannot be read"),
        ((str(broken), cameras, targets), "a list, also for a single picture"),
        ((Image.new("RGB", (8, 8)), cameras, targets), "a list, also for a single picture"),
        (([images[0], images[1, :8]], cameras, targets), "must have one shape"),
        (([b"bytes"] * 2, cameras, targets), "reference image cannot be decoded"),
        (([7, 7], cameras, targets), "must be a file, bytes.*type int"),
    ]:
        with pytest.raises(UserError, match=reason):
            tiny_pipe.generate(*arguments)
    with pytest.raises(UserError, match="ddim"):
        tiny_pipe.generate(images, cameras, targets, sampler="euler")


def test_folders_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        escherjax.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="neither checkpoints"):
        escherjax.load(tmp_path)
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match="which camera encoding"):
        escherjax.load(tmp_path)
