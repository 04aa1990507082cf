"""PSNR and SSIM equal the implementations that the field's numbers come from."""

import jax.numpy as jnp
import numpy as np
import pytest

from escherjax.errors import UserError
from escherjax.metrics import psnr, ssim


def pictures(rng):
    """Two uint8 stacks [3, 30, 41, 3]: noise, a blurred object on white, near-white and flat.

    Flat and bright is where sums of squares cancel; renders of objects are mostly that.
    """
    noise = rng.integers(0, 256, (2, 30, 41, 3))
    scene = np.full((2, 30, 41, 3), 255)
    scene[:, 8:22, 10:30] = np.linspace(0, 200, 14 * 20 * 3).reshape(14, 20, 3)
    scene[1] -= rng.integers(0, 4, scene[1].shape)
    flat = 250 + rng.integers(0, 3, (2, 30, 41, 3))
    return np.stack([noise, scene, flat], 1).clip(0, 255).astype(np.uint8)


def test_psnr_of_uint8_is_opencvs(rng):
    cv2 = pytest.importorskip("cv2")
    images, references = pictures(rng)
    expected = [cv2.PSNR(a, b) for a, b in zip(images, references, strict=True)]
    # float32 holds 60 dB to 4e-6
    np.testing.assert_allclose(psnr(images, references), expected, rtol=0, atol=1e-5)
    # as close to 361.202 as float32 comes
    equal = cv2.PSNR(images[0], images[0])
    np.testing.assert_array_equal(psnr(images, images), np.full(3, np.float32(equal)))


def test_psnr_of_uint8_holds_large_pictures():
    images = np.zeros((700, 700, 3), np.uint8)  # the sum of squares is 22 times 2^32
    references = np.full_like(images, 255)
    references[0, 0, 0] = 254
    expected = 10 * np.log10(255**2 / np.mean((images - references.astype(float)) ** 2))
    # 700 sums of rows, each exact, added in float32
    np.testing.assert_allclose(psnr(images, references), expected, rtol=0, atol=1e-5)


def test_psnr_of_floats_has_peak_one_and_no_limit(rng):
    images, references = pictures(rng) / np.float32(255)
    expected = 10 * np.log10(1 / np.mean((images - references).astype(float) ** 2, (1, 2, 3)))
    np.testing.assert_allclose(psnr(images, references), expected, rtol=0, atol=1e-5)
    assert np.isposinf(psnr(images, images)).all()


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_is_scikit_images(rng, window):
    metrics = pytest.importorskip("skimage.metrics")
    options = {"channel_axis": -1}
    if window == "gaussian":  # radius int(3.5 * 1.5 + 0.5) = 5: an 11 x 11 window
        options |= {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    images, references = pictures(rng)
    expected = [
        metrics.structural_similarity(a, b, **options)
        for a, b in zip(images, references, strict=True)
    ]
    assert expected[0] < 0.1 < 0.9 < expected[1]  # unlike and alike pictures are both there
    # float32 against float64; the window's means and variances are exact to 1e-6
    np.testing.assert_allclose(ssim(images, references, window), expected, rtol=0, atol=2e-6)
    unit = [stack / np.float32(255) for stack in (images, references)]
    np.testing.assert_allclose(ssim(*unit, window), expected, rtol=0, atol=2e-6)


def slow_gaussian_ssim(x, y):
    """Wang et al. 2004, equations 13 to 15, pixel by pixel in float64; x, y: [H, W] in [0, 1]."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * cov + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
    return np.mean(values)


def test_gaussian_ssim_is_the_papers_formula(rng):
    images, references = pictures(rng) / 255
    expected = [
        np.mean([slow_gaussian_ssim(a[..., c], b[..., c]) for c in range(3)])
        for a, b in zip(images, references, strict=True)
    ]
    got = ssim(images.astype(np.float32), references.astype(np.float32), "gaussian")
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)  # float32 against float64


def test_equal_pictures_have_ssim_one(rng):
    images = pictures(rng)[0]
    np.testing.assert_allclose(ssim(images, images), 1, rtol=0, atol=1e-6)


def test_values_are_per_item_over_any_leading_axes(rng):
    images, references = pictures(rng)
    np.testing.assert_array_equal(psnr(images[:, None], references[:, None]).shape, (3, 1))
    # a sum of 30 x 41 x 3 values may be split otherwise; 1e-6 is a few roundings
    one = ssim(images[1], references[1])
    assert one.shape == ()
    np.testing.assert_allclose(one, ssim(images, references)[1], rtol=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_unlike_arrays_are_refused_with_what_was_found(metric):
    image = jnp.zeros((8, 8, 3))
    with pytest.raises(UserError, match=r"\(8, 8, 3\) and references \(9, 8, 3\) must have"):
        metric(image, jnp.zeros((9, 8, 3)))
    with pytest.raises(UserError, match="got float32 and uint8"):
        metric(image, jnp.zeros((8, 8, 3), jnp.uint8))
    with pytest.raises(UserError, match="got int32"):
        metric(image.astype(int), image.astype(int))
    with pytest.raises(UserError, match=r"must be .*got shape \(8, 8, 4\)"):
        metric(jnp.zeros((8, 8, 4)), jnp.zeros((8, 8, 4)))


def test_ssim_refuses_pictures_smaller_than_its_window_and_unknown_windows():
    small = jnp.zeros((6, 40, 3))
    with pytest.raises(UserError, match="at least 7 x 7 pixels, got 6 x 40"):
        ssim(small, small)
    with pytest.raises(UserError, match="at least 11 x 11"):
        ssim(jnp.zeros((10, 10, 3)), jnp.zeros((10, 10, 3)), "gaussian")
    with pytest.raises(UserError, match="'uniform' or 'gaussian', got 'box'"):
        ssim(small, small, "box")
