"""Protocol `heldout`: which views of a scene are given, which are compared, and what they show."""

import dataclasses

import numpy as np
import pytest

from escherjax import cameras
from escherjax.data import images
from escherjax.data import shards as records
from escherjax.errors import UserError
from escherjax.evaluate.protocol import make_protocol
from escherjax.evaluate.protocols.heldout import view_order
from tests.helpers.painted_views import (
    POINTS,
    assert_points_where_painted,
    camera_axes,
    camera_positions,
    paint,
)
from tests.helpers.scene_folders import write_transforms, write_zero123

SIZE, VIEWS = 64, 5


@pytest.fixture(scope="module")
def rendered():
    """(pictures, c2w, K) of three dots, seen through Zero-1-to-3's lens."""
    focal = SIZE * 35 / 32
    K = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]], np.float32)
    pictures, c2w = [], np.zeros((VIEWS, 4, 4), np.float32)
    for view, position in enumerate(camera_positions(VIEWS)):
        right, up, forward = camera_axes(position, np.array([0.0, 0.0, 1.0]))
        x, y, z = ((POINTS - position) @ np.stack([right, -up, forward], axis=1)).T
        pixels = np.stack([x / z, y / z], axis=-1) * focal + SIZE / 2
        pictures.append(paint(pixels, SIZE, SIZE))
        c2w[view, :3] = np.stack([right, -up, forward, position], axis=-1)
        c2w[view, 3, 3] = 1
    return np.stack(pictures), c2w, np.broadcast_to(K, (VIEWS, 3, 3))


def scene_record(scene_id, rendered):
    pictures, c2w, K = rendered
    encoded = [images.encode_png(picture) for picture in pictures]
    return records.Scene(scene_id, "test", encoded, c2w, K, SIZE, SIZE)


@pytest.fixture(scope="module")
def shards(rendered, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    scenes = [scene_record(name, rendered) for name in ("b", "a", "c")]
    records.write_scenes(folder, scenes, "heldout", num_shards=2)
    return folder


def open_heldout(path, mode="corrected", counts=(1, 3), **options):
    return make_protocol("heldout", path, mode, reference_counts=counts, **options)


def test_references_are_nested_and_targets_never_change_nor_hold_a_reference(shards):
    protocol = open_heldout(shards)
    assert protocol.scene_ids() == ["a", "b", "c"]
    one, three = (protocol.read("a", count, 32, "6dof") for count in (1, 3))
    assert one.reference_images.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(one.reference_images[0], three.reference_images[0])
    np.testing.assert_array_equal(one.reference_c2w[0], three.reference_c2w[0])
    np.testing.assert_array_equal(one.target_c2w, three.target_c2w)
    np.testing.assert_array_equal(one.truth, three.truth)
    all_centers = np.concatenate([three.reference_c2w, three.target_c2w])[:, :3, 3]
    assert len(np.unique(all_centers, axis=0)) == 5
    assert one.scored.tolist() == [0, 1]


def test_order_of_views_depends_on_the_scene_id_alone():
    # Fixed numbers: results must not change with numpy's version.
    assert view_order("a", 8).tolist() == [7, 6, 5, 3, 1, 4, 2, 0]
    assert view_order("b", 8).tolist() == [6, 7, 3, 4, 1, 5, 2, 0]


def soft_scene():
    """Views whose left half is half-covered red, whose right half is empty with black colour."""
    picture = np.zeros((SIZE, SIZE, 4), np.uint8)
    picture[:, : SIZE // 2] = (200, 0, 0, 128)
    views = 3
    c2w = cameras.from_spherical(np.full(views, 1.0), np.arange(views), np.full(views, 4.0))
    K = np.broadcast_to(cameras.intrinsics_from_fov(0.7, SIZE, SIZE), (views, 3, 3))
    return records.Scene("soft", "test", [images.encode_png(picture)] * views, c2w, K, SIZE, SIZE)


@pytest.fixture(scope="module")
def soft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soft")
    records.write_scenes(folder, [soft_scene()], "heldout")
    return folder


def test_modes_differ_in_background_filter_and_rounding(soft):
    faithful, corrected = (open_heldout(soft, mode, (1,)) for mode in ("faithful", "corrected"))
    first, second = (p.read("soft", 1, SIZE, "6dof") for p in (faithful, corrected))
    # Straight colour where alpha is not 0; 200 and 0 over white at alpha 128 / 255, rounded.
    assert first.truth[0, 0, 0].tolist() == [200, 0, 0]
    assert second.truth[0, 0, 0].tolist() == [227, 127, 127]
    for case in (first, second):
        assert case.truth[0, 0, -1].tolist() == [255, 255, 255]
        np.testing.assert_array_equal(case.truth[0], case.reference_images[0])
    values = np.full((1, 2, 2, 3), 100.7 / 255)
    assert (faithful.conventions.to_uint8(values) == 100).all()
    assert (corrected.conventions.to_uint8(values) == 101).all()
    assert faithful.describe()["rules"] != corrected.describe()["rules"]
    # Bicubic overshoots at an edge, bilinear does not.
    small = faithful.read("soft", 1, SIZE // 3, "6dof")
    assert (small.truth[0] != small.reference_images[0]).any()
    shrunk = corrected.read("soft", 1, SIZE // 3, "6dof")
    expected = cameras.intrinsics_from_fov(0.7, SIZE // 3, SIZE // 3)
    for case in (small, shrunk):
        np.testing.assert_allclose(case.target_K, [expected] * 2, rtol=1e-6)  # float32
    np.testing.assert_array_equal(shrunk.truth[0], shrunk.reference_images[0])


def test_fields_of_view_are_matched_only_where_asked(soft):
    stored = open_heldout(soft, counts=(1,)).read("soft", 1, SIZE, "6dof")
    wide = open_heldout(soft, counts=(1,), fov_deg=90).read("soft", 1, SIZE, "6dof")
    # tan(0.35): half the picture's width over its distance; at 90 degrees that is the share of the
    # half that it fills.
    margin = round(SIZE / 2 * (1 - np.tan(0.35)))
    assert (wide.truth[0, : margin - 1] == 255).all() and (stored.truth[0, 0, 0] != 255).any()
    assert (wide.truth[0, margin + 1, margin + 1] != 255).any()
    for case, half in ((stored, 0.35), (wide, np.radians(45))):
        expected = cameras.intrinsics_from_fov(2 * half, SIZE, SIZE)
        np.testing.assert_allclose(case.target_K, [expected] * 2, rtol=1e-6)  # float32


def test_scenes_are_scaled_only_where_asked(soft):
    def radii(**options):
        case = open_heldout(soft, counts=(1,), **options).read("soft", 1, SIZE, "6dof")
        return np.linalg.norm(case.target_c2w[:, :3, 3], axis=-1)

    np.testing.assert_allclose(radii(), 4.0, rtol=1e-6)  # float32
    np.testing.assert_allclose(radii(max_radius=1.5), 1.5, rtol=1e-6)


def test_folders_of_any_layout_give_pictures_of_their_cameras(rendered, tmp_path):
    write_zero123(tmp_path / "scenes" / "renders", rendered)
    write_transforms(tmp_path / "scenes" / "json", rendered, fl_x=70.0)
    protocol = open_heldout(tmp_path / "scenes")
    assert protocol.scene_ids() == ["json", "renders"]
    for scene_id in protocol.scene_ids():
        case = protocol.read(scene_id, 3, SIZE, "6dof")
        for pictures, c2w in (
            (case.reference_images, case.reference_c2w),
            (case.truth, case.target_c2w),
        ):
            encoded = [images.encode_png(picture) for picture in pictures]
            K = rendered[2][: len(c2w)]
            assert_points_where_painted(
                records.Scene(scene_id, "test", encoded, c2w, K, SIZE, SIZE)
            )


def test_bad_scenes_and_options_are_named(shards, soft, rendered, tmp_path):
    with pytest.raises(UserError, match="scene 'a' has 5 views but must have more than 5"):
        open_heldout(shards, counts=(5,)).read("a", 5, 32, "6dof")
    with pytest.raises(UserError, match="at most 3, .* got 4"):
        open_heldout(shards).read("a", 4, 32, "6dof")
    with pytest.raises(UserError, match="has no scene 'z'"):
        open_heldout(shards).read("z", 1, 32, "6dof")
    with pytest.raises(UserError, match="has no split 'val'; it has heldout"):
        open_heldout(shards, split="val")
    with pytest.raises(
        UserError,
        match="num_targets must .* got 0.*fov_deg must .* got 190.*for the mode 'corrected'",
    ):
        open_heldout(soft, "faithful", num_targets=0, fov_deg=190.0)
    with pytest.raises(UserError, match="no scenes in"):
        open_heldout(tmp_path)
    write_zero123(tmp_path / "opaque", rendered)
    with pytest.raises(UserError, match="view . of scene 'opaque' sees less than 90"):
        open_heldout(tmp_path / "opaque", fov_deg=90.0).read("opaque", 1, 32, "6dof")


def write_splits(folder, scene, *splits):
    folder.mkdir()
    for split in splits:
        records.write_shard(records.shard_path(folder, split, 0, 1), [scene])
    records.write_metadata(folder, {split: [1] for split in splits})
    return folder


def test_the_held_out_split_is_taken_and_no_other_one_guessed(tmp_path):
    scene = soft_scene()
    folder = write_splits(tmp_path / "both", scene, "heldout", "train")
    other = dataclasses.replace(scene, scene_id="training")
    records.write_shard(records.shard_path(folder, "train", 0, 1), [other])
    assert open_heldout(folder, counts=(1,)).scene_ids() == ["soft"]
    assert open_heldout(folder, counts=(1,)).describe()["rules"]["split"] == "heldout"
    trained = open_heldout(folder, counts=(1,), split="train")
    assert trained.scene_ids() == ["training"] and trained.describe()["rules"]["split"] == "train"
    for splits in (("train", "val"), ("train",)):
        folder = write_splits(tmp_path / "-".join(splits), scene, *splits)
        with pytest.raises(UserError, match=f"no scenes held out .*{', '.join(splits)}.*--split"):
            open_heldout(folder, counts=(1,))
