"""EscherNet's renders of GSO objects: three sets of an object, in two conventions of axes."""

import numpy as np
import pytest
from PIL import Image

from data_prep import gso
from data_prep.inspect.epipolar import check_scene
from escherjax.data.formats import folders
from escherjax.errors import UserError
from tests.helpers.scene_folders import (
    SIZE,
    VIEWS,
    assert_balls_where_projected,
    render_balls,
    run,
    write_zero123,
)


@pytest.fixture(scope="module")
def rendered():
    return render_balls()


def write_opencv(folder, rendered, with_pictures=True):
    """A set of renders whose poses have OpenCV axes: x right, y down, z forward."""
    folder.mkdir(parents=True)
    for view, (picture, c2w) in enumerate(zip(*rendered[:2], strict=True)):
        np.save(folder / f"{view:03d}.npy", np.linalg.inv(c2w.astype(np.float64))[:3])
        if with_pictures:
            Image.fromarray(picture).save(folder / f"{view:03d}.png")


@pytest.mark.parametrize("renders", ["render_mvs_25", "render_sync_36_single", "render_spiral_100"])
def test_every_set_projects_known_points_onto_their_pixels(rendered, tmp_path, renders):
    one = tmp_path / "GSO30" / "one"
    write_zero123(one / "render_mvs_25" / "model", rendered)
    write_opencv(one / "render_sync_36_single" / "model", rendered)
    write_opencv(one / "render_spiral_100" / "model", rendered)
    source, report = run(gso, tmp_path / "GSO30", tmp_path / "out", "--renders", renders)
    assert (report["scenes"], report["views"]) == (1, VIEWS)
    assert (source[0].scene_id, source[0].width) == ("one", SIZE)
    assert_balls_where_projected(source[0])
    np.testing.assert_allclose(source[0].c2w, rendered[1], atol=1e-5)


def test_objects_are_named_and_sorted_from_any_folder_above(rendered, tmp_path):
    part = tuple(array[:1] for array in rendered)
    for name in ("toy/b", "toy/a", "c"):
        write_zero123(tmp_path / "GSO30" / name / "render_mvs_25" / "model", part)
    write_zero123(tmp_path / "GSO30" / "other" / "000", part)
    starts = {
        "": ["c", "toy/a", "toy/b"],
        "toy": ["a", "b"],
        "toy/a": ["a"],
        "c/render_mvs_25": ["c"],
        "c/render_mvs_25/model": ["c"],
    }
    for start, names in starts.items():
        found = folders.find_gso_objects(tmp_path / "GSO30" / start, "render_mvs_25")
        assert [name for name, _ in found] == names
    with pytest.raises(UserError, match="has renders in OBJECT/render_spiral_100/model"):
        folders.find_gso_objects(tmp_path / "GSO30", "render_spiral_100")


def test_sets_of_poses_alone_and_incomplete_ones_are_skipped(rendered, tmp_path):
    renders = "render_sync_36_single"
    write_opencv(tmp_path / "GSO30" / "whole" / renders / "model", rendered)
    write_opencv(tmp_path / "GSO30" / "poses" / renders / "model", rendered, with_pictures=False)
    part = tuple(array[:2] for array in rendered)
    write_opencv(tmp_path / "GSO30" / "few" / renders / "model", part)
    options = ("--renders", renders, "--num-views", str(VIEWS))
    source, report = run(gso, tmp_path / "GSO30", tmp_path / "out", *options)
    assert [source[i].scene_id for i in range(len(source))] == ["whole"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    assert "view 000 has no picture (5 such views)" in reasons["poses"]
    assert "has 2 views" in reasons["few"]


def test_real_object_keeps_matched_features_on_their_epipolar_lines(data_dir, tmp_path):
    source, _ = run(gso, data_dir / "gso_elephant", tmp_path / "out", "--resolution", "0")
    scene = source[0]
    assert (scene.scene_id, scene.num_views) == ("gso_elephant", 25)
    assert (scene.height, scene.width) == (512, 512)
    np.testing.assert_allclose(scene.K, np.array([[[560, 0, 256], [0, 560, 256], [0, 0, 1]]] * 25))
    radius = np.linalg.norm(scene.c2w[:, :3, 3], axis=-1)
    assert radius.min() > 1.5 and radius.max() < 2.2
    # Every camera looks at the origin.
    forward = scene.c2w[:, :3, 3] + radius[:, None] * scene.c2w[:, :3, 2]
    np.testing.assert_allclose(forward, 0, atol=1e-4)
    pytest.importorskip("cv2")
    # 0.5 pixels; the bound leaves room for another version of the feature detector.
    agreement = check_scene(scene)
    assert agreement.matches.sum() > 50
    assert np.nanmedian(agreement.distance) < 1.0
