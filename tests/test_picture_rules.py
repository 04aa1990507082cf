"""From stored pictures to what the network is given and what it is compared with."""

import numpy as np
import pytest
from PIL import Image

from escherjax.data.photos.windows import fov_deg_of
from escherjax.errors import UserError
from escherjax.evaluate.picture_rules import PictureRules, of_renders

SIDE = 60
K_SIDE = np.array([[SIDE * 35 / 32, 0, SIDE / 2], [0, SIDE * 35 / 32, SIDE / 2], [0, 0, 1]])


@pytest.fixture
def picture(rng):
    """Noise with alpha 0, between, and 255."""
    picture = rng.integers(0, 256, (SIDE, SIDE, 4), np.uint8)
    picture[:20, :, 3] = 0
    picture[40:, :, 3] = 255
    return picture


def pillow(flat, size, resample):
    return np.asarray(Image.fromarray(flat).resize((size, size), resample))


def test_faithful_whitens_alpha_of_exactly_0_and_composites_nothing(picture):
    flat = np.where(picture[..., 3:] == 0, 255, picture[..., :3]).astype(np.uint8)
    rules = of_renders("faithful")
    np.testing.assert_array_equal(rules.reference(picture, K_SIDE, SIDE, "x")[0], flat)
    np.testing.assert_array_equal(
        rules.reference(picture, K_SIDE, 24, "x")[0], pillow(flat, 24, Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(
        rules.truth(picture, K_SIDE, 24, "x")[0], pillow(flat, 24, Image.Resampling.BICUBIC)
    )


def test_faithful_loads_pictures_as_the_original_does(golden_dir):
    stored = np.load(golden_dir / "conversions-6dof.npz")
    for size in (64, 100, 256):
        made = of_renders("faithful").reference(stored["load_im/rgba_u8"], np.eye(3), size, "x")[0]
        expected = (stored[f"load_im/resized_{size}"].transpose(1, 2, 0) * 0.5 + 0.5) * 255
        np.testing.assert_allclose(made, expected, atol=1e-4)  # the golden's are float32


def test_corrected_composites_once_and_resizes_once(picture):
    alpha = picture[..., 3:] / 255
    flat = np.round(picture[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    rules = of_renders("corrected")
    # The training renders' own field of view: nothing to pad, the plain resize.
    expected = pillow(flat, 24, Image.Resampling.BILINEAR)
    for make in (rules.reference, rules.truth):
        np.testing.assert_array_equal(make(picture, K_SIDE, SIDE, "x")[0], flat)
        np.testing.assert_array_equal(make(picture, K_SIDE, 24, "x")[0], expected)
        again, K = make(picture, K_SIDE.astype(np.float32), 24, "x")
        np.testing.assert_array_equal(again, expected)
        np.testing.assert_allclose(K, K_SIDE * [[24 / SIDE], [24 / SIDE], [1]], rtol=1e-6)


@pytest.mark.parametrize("focal", [0.7, 1.9])  # wider than the picture, and narrower
def test_matched_fields_of_view_show_things_where_they_project(focal):
    """A soft dark dot, its principal point off the middle, pixels that are not square."""
    height, width, size = 80, 100, 64
    K = np.array([[110.0, 0, 52.3], [0, 120.0, 38.1], [0, 0, 1]])
    ray = np.array([0.06, -0.04])
    u, v = ray * [K[0, 0], K[1, 1]] + K[:2, 2]
    rows, columns = np.mgrid[:height, :width] + 0.5
    dot = np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 3.0**2))
    picture = np.zeros((height, width, 4), np.uint8)
    picture[..., 3] = np.round(255 * dot)
    made = PictureRules("white", fov_deg_of(focal, 1)).reference(picture, K, size, "x")[0]
    dark = 255.0 - made[..., 0]
    rows, columns = np.mgrid[:size, :size] + 0.5
    seen = [(dark * columns).sum() / dark.sum(), (dark * rows).sum() / dark.sum()]
    # Rounding to 8 bits moves a centroid by hundredths of a pixel; a padding of whole pixels or
    # half a pixel of K would move it by a quarter.
    np.testing.assert_allclose(seen, focal * size * ray + size / 2, atol=0.05)


def test_padding_is_exactly_white_and_never_invented_about_opaque_pictures():
    K = np.array([[SIDE * 2.0, 0, SIDE / 2], [0, SIDE * 2.0, SIDE / 2], [0, 0, 1]])
    opaque = np.zeros((SIDE, SIDE, 3), np.uint8)
    clear = np.dstack([opaque, np.full((SIDE, SIDE), 255, np.uint8)])
    clear[0, 0, 3] = 254
    rules = PictureRules("white", fov_deg_of(1.0, 1))
    made = rules.reference(clear, K, SIDE, "x")[0]
    assert (made[:14] == 255).all() and (made[-14:] == 255).all() and made[30, 30, 0] == 0
    for picture in (opaque, np.dstack([opaque, np.full((SIDE, SIDE), 255, np.uint8)])):
        with pytest.raises(UserError, match="view 3 sees less than 53.13 degrees, and"):
            rules.reference(picture, K, SIDE, "view 3")
        narrower = PictureRules("white", fov_deg_of(3.0, 1))
        assert narrower.reference(picture, K, 20, "x")[0].max() == 0
    opaque[:3] = opaque[-3:] = 255
    opaque[:, :3] = opaque[:, -3:] = 255
    assert (rules.reference(opaque, K, SIDE, "x")[0][:14] == 255).all()


def test_without_matching_the_central_square_is_taken():
    picture = np.zeros((30, 50, 3), np.uint8)
    picture[:, 10:40] = 7
    for background in ("white", "zero123"):
        made = PictureRules(background).reference(picture, np.eye(3), 30, "x")[0]
        assert made.shape == (30, 30, 3) and (made == 7).all()


def test_files_are_read_in_order_and_every_broken_one_is_named(tmp_path):
    def view(name):
        return tmp_path / name, np.eye(4), lambda picture: (picture, np.eye(3))

    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    rules = PictureRules("white")
    made, _ = rules.truths([view(f"{number}.png") for number in range(12)], 8)
    assert made[:, 0, 0, 0].tolist() == list(range(12))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="broken.png cannot be decoded.*gone.png cannot be read"):
        rules.references([view("broken.png"), view("0.png"), view("gone.png")], 8)
