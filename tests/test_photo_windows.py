"""Windows of pictures: K moves with the pixels, fields of view are exact, white is white."""

import tracemalloc

import numpy as np
import pytest

from escherjax import cameras
from escherjax.data import images
from escherjax.data.photos import windows
from escherjax.data.photos.windows import Box, Window

POINTS = np.array([[0.2, -0.15, 2.0], [-0.25, 0.1, 1.6], [0.05, 0.3, 2.2]])  # camera coordinates
K = np.array([[130.0, 0, 68.5], [0, 117.0, 41.25], [0, 0, 1]])  # of oblong pixels, off the middle
HEIGHT, WIDTH = 90, 140


def projected(K):
    return cameras.project(POINTS, np.eye(4), K)[0]


def dark_dots(opaque=True):
    """White, with a dot of half a hue about each projection; channel c is dark at point c."""
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    dots = [np.exp(-((u - x) ** 2 + (v - y) ** 2) / 18) for x, y in projected(K)]
    picture = np.round(255 - 255 * np.stack(dots, -1)).astype(np.uint8)
    if opaque:
        return picture
    return np.dstack([np.where(picture > 250, 0, picture), 255 - picture.min(-1)])


@pytest.mark.parametrize(
    "window",
    [
        Window(-20.25, -41.5, 180.5, 173.75),  # padded on every side
        Window(8.4, 7.0, 118.1, 75.6),  # cut on every side
        Window(30, -10.0, 130, 95.2),  # cut and padded
    ],
    ids=["padded", "cut", "both"],
)
@pytest.mark.parametrize("opaque", [True, False])
def test_pixels_of_a_scene_point_follow_its_projection(window, opaque):
    square, moved = windows.resample(dark_dots(opaque), window, 128, K)
    assert square.shape == (128, 128, 3) and moved.dtype == np.float32
    v, u = np.mgrid[:128, :128] + 0.5
    for channel, (x, y) in enumerate(projected(moved.astype(np.float64))):
        if opaque:
            weight = np.where(square[..., channel] < 240, 255.0 - square[..., channel], 0)
            seen = [(weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()]
            # a tenth of a pixel: rounding to 8 bits; half a pixel would be a wrong origin
            np.testing.assert_allclose(seen, [x, y], atol=0.1)
        else:
            assert square[int(y), int(x)].min() < 128


def test_a_ray_is_the_same_before_and_after():
    window = Window(-3.7, 11.2, 97.3, 55.1)
    moved = windows.resample(dark_dots(), window, 64, K)[1].astype(np.float64)
    pixels = (projected(K) - [window.left, window.top]) * 64 / [window.width, window.height]
    rays = np.c_[pixels, np.ones(3)] @ np.linalg.inv(moved).T
    # K is stored as float32
    np.testing.assert_allclose(rays, POINTS / POINTS[:, 2:], atol=1e-6)


@pytest.mark.parametrize("fov_deg", [20.0, 49.13, 75.0])
def test_field_of_view_is_exact_both_ways_about_the_principal_point(fov_deg):
    window = windows.fov_window(K, fov_deg)
    focal = 128 / 2 / np.tan(np.radians(fov_deg / 2))
    _, moved = windows.resample(dark_dots(), window, 128, K)
    expected = [[focal, 0, 64], [0, focal, 64], [0, 0, 1]]
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
    assert windows.fov_deg_of(moved[0, 0], 128) == pytest.approx(fov_deg, rel=1e-6)


def test_all_that_is_added_is_exactly_white():
    for picture in (np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 4), 200, np.uint8)):
        square, _ = windows.resample(picture, Window(-20, -30, 100, 100), 100, np.eye(3))
        added = np.ones((100, 100), bool)
        added[30:70, 20:80] = False
        assert (square[added] == 255).all() and (square[~added] < 255).all()


def test_a_window_of_whole_pixels_is_the_crop_that_training_makes(rng):
    picture = rng.integers(0, 256, (50, 72, 4), np.uint8)
    crop, moved = images.square_crop(picture, K)
    expected = images.resize_image(images.on_background(crop, images.WHITE), 32, 32)
    square, ours = windows.resample(picture, windows.central_square(50, 72), 32, K)
    np.testing.assert_array_equal(square, expected)
    np.testing.assert_allclose(ours, cameras.resize_intrinsics(moved, 0.64, 0.64), rtol=1e-6)


def test_a_very_narrow_picture_takes_no_more_memory_than_a_photo():
    narrow = cameras.intrinsics_from_fov(np.radians(0.5), 400, 400)
    window = windows.fov_window(narrow, 50.0)
    assert window.width * window.height > 1e9
    black = np.zeros((400, 400, 3), np.uint8)
    tracemalloc.start()
    square, moved = windows.resample(black, window, 256, narrow)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e8  # bytes; the window itself would take gigabytes
    darkness = (255.0 - square[..., 0]) / 255
    # 2.4 pixels wide; the shrunk picture has whole ones, a part in two hundred
    assert darkness.sum() == pytest.approx((400 * 256 / window.width) ** 2, rel=0.05)
    assert windows.fov_deg_of(moved[0, 0], 256) == pytest.approx(50.0, rel=1e-6)


def test_moved_inside_shifts_only_as_far_as_needed():
    assert windows.moved_inside(Window(-3, 20, 50, 50), 60, 90) == Window(0, 10, 50, 50)
    assert windows.moved_inside(Window(5, 5, 50, 50), 60, 90) == Window(5, 5, 50, 50)
    assert windows.moved_inside(Window(5, 5, 50, 61), 60, 90) is None


def test_objects_are_as_large_as_in_training_views_and_in_the_middle():
    share = 0.5 / np.tan(np.radians(25))
    boxes = [Box(10, 20, 50, 40), Box(30, 10, 60, 90)]
    sizes = [(100, 200), (100, 90)]
    found = windows.object_windows(boxes, sizes, [1.5, 2.0], 50.0)
    for (left, top, right, bottom), window, radius in zip(boxes, found, [1.5, 2.0], strict=True):
        longer = max(right - left, bottom - top)
        assert longer / window.width == pytest.approx(windows.OBJECT_SIZE * share / radius)
        assert window.width == window.height
        middle = (window.left + window.width / 2, window.top + window.height / 2)
        assert middle == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    # one camera: the object's sides keep their sizes relative to each other
    alike = windows.object_windows(boxes, [(100, 200)] * 2, [1.5, 2.0], 50.0)
    assert alike[0].width == alike[1].width == found[1].width


def test_object_size_is_that_of_real_training_views(data_dir):
    from escherjax.data.formats.folders import read_scene_folder

    scene = read_scene_folder(data_dir / "gso_elephant" / "render_mvs_25" / "model")
    sizes = []
    for data, c2w, K in zip(scene.images, scene.c2w, scene.K, strict=True):
        left, top, right, bottom = windows.object_box(images.decode_image(data, "view"))
        sizes.append(max(right - left, bottom - top) * np.linalg.norm(c2w[:3, 3]) / K[0, 0])
    assert np.median(sizes) == pytest.approx(windows.OBJECT_SIZE, abs=0.01)


def test_object_box_and_background():
    clear = np.zeros((8, 10, 4), np.uint8)
    assert windows.object_box(clear) is None and windows.has_clear_background(clear)
    clear[2:5, 3:9, 3] = 255
    clear[0, :, 3] = 100  # a haze
    assert windows.object_box(clear) == (3, 2, 9, 5)
    white = np.full((40, 50, 3), 254, np.uint8)
    assert windows.object_box(white) is None and windows.has_clear_background(white)
    white[10:20, 5:30] = 90
    assert windows.object_box(white) == (5, 10, 30, 20) and windows.has_clear_background(white)
    white[0, 10:14] = 0  # 4 of 180 pixels of the border
    assert not windows.has_clear_background(white)
    opaque = np.dstack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 255, np.uint8)])
    assert not windows.has_alpha(opaque) and not windows.has_clear_background(opaque)
