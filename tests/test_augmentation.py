"""Zoom and shift: a known point keeps its pixel's colour, seen through the K that comes with it."""

import dataclasses

import numpy as np
import pytest

from escherjax import cameras
from escherjax.data import images, loader, shards
from escherjax.data import rows as drawing
from escherjax.data.loader_config import LoaderConfig
from escherjax.errors import UserError
from escherjax.train import sources
from tests.helpers.batches import entries
from tests.helpers.tiny import tiny_config

POINT = np.array([0.1, -0.12, 0.08], np.float32)


def scene_of_a_dot(rng, views=4, height=48, width=48, channels=4):
    """A red disc of 3 pixels about the projection of POINT, on nothing (or on grey)."""
    polar, azimuth = rng.uniform(0.5, 2.6, (2, views))
    c2w = cameras.from_spherical(polar, azimuth, rng.uniform(1.6, 2.2, views))
    K = np.array([[55.0, 0, width / 2 + 2], [0, 60, height / 2 - 3], [0, 0, 1]], np.float32)
    K = np.tile(K, (views, 1, 1))
    pixels = cameras.project(np.tile(POINT, (views, 1, 1)), c2w, K)[0][:, 0]
    pictures = np.zeros((views, height, width, 4), np.uint8)
    rows, columns = np.mgrid[:height, :width] + 0.5
    for picture, (u, v) in zip(pictures, pixels, strict=True):
        picture[(columns - u) ** 2 + (rows - v) ** 2 < 9] = (255, 0, 0, 255)
    if channels == 3:
        pictures = images.on_background(pictures, (90, 90, 90))
        pictures = [images.encode_png(picture) for picture in pictures]
    return shards.Scene("dot", "test", pictures, c2w, K, height, width)


def where_red(picture):
    """(u, v) of the red pixels' centre; redness is what green lacks."""
    rows, columns = np.mgrid[: len(picture), : len(picture)] + 0.5
    weight = np.maximum(picture[..., 0].astype(float) - picture[..., 1], 0)
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


def batch_of(scene, **changes):
    defaults = {"resolution": 40, "num_references": 2, "num_targets": 2, "with_replacement": False}
    batches = loader.make_loader([scene], LoaderConfig(**(defaults | changes)), 6, num_threads=1)
    batch = entries(next(batches))
    batches.close()
    return {
        name: np.concatenate([batch[f"ref_{name}"], batch[f"target_{name}"]], 1)
        for name in ("images", "c2w", "K")
    }


@pytest.mark.parametrize("augment_views", [False, True])
@pytest.mark.parametrize(
    ("shape", "channels", "zoom", "background"),
    [
        ((48, 48), 4, (0.6, 0.9), "white"),
        ((48, 48), 4, (0.7, 1.4), "zero123"),
        ((48, 70), 4, (0.6, 1.4), "white"),
        ((70, 48), 3, (1.0, 1.4), "white"),
    ],
)
def test_a_point_keeps_its_colour_where_its_camera_projects_it(
    rng, shape, channels, zoom, background, augment_views
):
    scene = scene_of_a_dot(rng, 4, *shape, channels)
    made = batch_of(
        scene, zoom=zoom, shift=0.12, background=background, augment_views=augment_views, seed=1
    )
    seen = np.array([[where_red(view) for view in row] for row in made["images"]])
    points = np.tile(POINT, (*made["c2w"].shape[:2], 1, 1))
    expected = cameras.project(points, made["c2w"], made["K"])[0][..., 0, :]
    # Discs are drawn on whole pixels, 0.35 of one off at most; a crop enlarges that by its zoom.
    np.testing.assert_allclose(seen, expected, atol=0.35 * 1.4)
    plain = batch_of(scene, seed=1)
    factor = made["K"][..., 0, 0] / plain["K"][..., 0, 0]
    low, high = zoom
    assert (factor > 0.97 * low).all() and (factor < 1.03 * high).all()  # whole pixels of 48
    assert factor.max() / factor.min() > 1.1
    assert (np.ptp(factor, axis=1) > 0.01).any() == augment_views


def test_zoom_changes_nothing_but_pictures_and_intrinsics(rng):
    scene = scene_of_a_dot(rng)
    plain, made = batch_of(scene), batch_of(scene, zoom=(0.9, 1.2), shift=0.1)
    np.testing.assert_array_equal(plain["c2w"], made["c2w"])
    assert (plain["K"] != made["K"]).any() and (plain["images"] != made["images"]).any()
    exact = batch_of(scene, zoom=(1.0, 1.0))
    for name in plain:
        np.testing.assert_array_equal(plain[name], exact[name])


@pytest.mark.parametrize("background, ground", [("white", 255), ("black", 0), ("zero123", 255)])
def test_what_lies_beyond_a_picture_is_background(background, ground):
    solid = np.full((1, 20, 20, 4), 255, np.uint8)
    solid[..., :3], solid[:, 0, 0] = (10, 200, 30), 0
    scene = shards.Scene(
        "one", "test", solid, np.eye(4, dtype=np.float32)[None], np.eye(3)[None], 20, 20
    )
    crops = np.array([[0.5, 0.0, 0.0]])
    view = drawing.read_views(scene, np.array([0]), 40, background, crops)[0][0]
    assert (view[11:30, 11:30] == (10, 200, 30)).all()
    for outside in (view[:10], view[30:], view[:, :10], view[:, 30:], view[10, 10]):
        assert (outside == ground).all()


@pytest.mark.parametrize("alpha", [None, 255])
def test_looking_beyond_an_opaque_picture_is_refused(rng, alpha):
    scene = scene_of_a_dot(rng, channels=3)
    if alpha is not None:
        pictures = [images.decode_image(data, "view") for data in scene.images]
        opaque = [np.dstack([p, np.full(p.shape[:2], alpha, np.uint8)]) for p in pictures]
        scene = dataclasses.replace(scene, images=np.stack(opaque))
    with pytest.raises(UserError, match="zoom 0.8 looks beyond an opaque picture"):
        batch_of(scene, zoom=(0.8, 0.8))
    batch_of(scene, zoom=(1.0, 1.5), shift=0.3)


@pytest.mark.parametrize("height, width", [(31, 31), (30, 47), (48, 29)])
def test_a_crop_stays_inside_and_a_padded_picture_is_kept_whole(rng, height, width):
    """Every pixel holds its own address, so that the crop's place and its K can be read off it."""
    rows, columns = np.mgrid[:height, :width]
    address = np.dstack([rows, columns, 0 * rows, 0 * rows + 7]).astype(np.uint8)
    shorter = min(height, width)
    lefts = set()
    for zoom in (0.5, 0.83, 1.0, 1.07, 1.9):
        for right, down in rng.uniform(-0.5, 0.5, (20, 2)):
            K = np.array([[50.0, 0, 11], [0, 51, 9], [0, 0, 1]])
            crop, moved = images.square_crop(address, K, zoom, (right, down))
            side = round(shorter / zoom)
            assert crop.shape == (side, side, 4)
            known = crop[..., 3] == 7
            if side <= shorter:
                assert known.all()
            if side >= max(height, width):
                assert known.sum() == height * width
            v, u = np.argwhere(known)[len(np.argwhere(known)) // 2]
            row, column = crop[v, u, :2]
            # The same ray: its pixel moved exactly as the principal point did.
            np.testing.assert_allclose(
                [u - column, v - row], [moved[0, 2] - 11, moved[1, 2] - 9], atol=0
            )
            np.testing.assert_array_equal(moved[:2, :2], K[:2, :2])
            lefts.add((zoom, u - column))
    assert len(lefts) > 10


def test_shift_is_bounded_and_used(rng):
    settings = LoaderConfig(zoom=(0.5, 2.0), shift=0.1, augment_views=True)
    crops = drawing.draw_crops(settings, 4000, rng)
    zoom, shift = crops[:, 0], np.abs(crops[:, 1:])
    assert (shift <= np.minimum(0.1, np.abs(1 - 1 / zoom) / 2)[:, None] + 1e-12).all()
    assert shift.max() > 0.095 and (np.sign(crops[:, 1]) != np.sign(crops[:, 2])).mean() > 0.4
    # Log-uniform over (1/2, 2): half of the draws below 1; 4 standard deviations are 0.032.
    assert abs((zoom < 1).mean() - 0.5) < 0.032 and zoom.min() >= 0.5 and zoom.max() <= 2
    shared = drawing.draw_crops(dataclasses.replace(settings, augment_views=False), 5, rng)
    assert (shared == shared[0]).all()


def test_zoom_out_of_opaque_shards_is_refused_before_anything_starts(rng, tmp_path):
    scene = scene_of_a_dot(rng)
    encoded = [images.encode_png(picture) for picture in scene.images]
    shards.write_scenes(tmp_path / "cut_out", [dataclasses.replace(scene, images=encoded)])
    shards.write_scenes(tmp_path / "opaque", [scene_of_a_dot(rng, channels=3)])
    config = tiny_config(
        data__source=f"{tmp_path / 'cut_out'},{tmp_path / 'opaque'}", data__zoom=(0.8, 1.2)
    )
    with pytest.raises(UserError, match="those of .*opaque are opaque") as caught:
        sources.open_training_source(config)
    assert "cut_out" not in str(caught.value)
    config.data.source = str(tmp_path / "cut_out")
    assert len(sources.open_training_source(config)) == 1
