"""Photos without cameras: COLMAP finds them, and they agree with those known."""

import numpy as np
import pytest
from PIL import Image

from data_prep import image_folder
from escherjax import cameras
from escherjax.data import images, shards
from escherjax.data.inputs import open_views
from escherjax.errors import UserError
from tests.helpers.scene_folders import run

pytest.importorskip("pycolmap")

SIZE, PHOTOS, TURNED = 192, 6, 2
EXTENT = 1.2


def true_cameras():
    """(c2w [V, 4, 4], K [3, 3]) on an arc above a relief, upright."""
    azimuth = np.linspace(0.0, 0.7, PHOTOS)
    c2w = cameras.from_spherical(np.linspace(0.5, 0.8, PHOTOS), azimuth, 2.2)
    return c2w.astype(float), cameras.intrinsics_from_fov(0.9, SIZE, SIZE).astype(float)


def write_photos(folder):
    """Photos of two textured planes at different heights; number TURNED lies on its side."""
    cv2 = pytest.importorskip("cv2")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    c2w, K = true_cameras()
    side = 600
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = [
        cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), np.uint8), (0, 0), 3.0)
        for _ in range(2)
    ]
    textures = [cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX) for texture in noise]
    for view, pose in enumerate(c2w):
        w2c = np.linalg.inv(pose)
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        for texture, height, half in zip(textures, (0.0, 0.5), (EXTENT, 0.35), strict=True):
            scale = 2 * half / side
            world = np.array(
                [
                    [scale, 0, 0.5 * scale - half],
                    [0, scale, 0.5 * scale - half],
                    [0, 0, 1],
                ]
            )
            plane = w2c[:3, [0, 1, 3]].copy()
            plane[:, 2] += height * w2c[:3, 2]
            to_index = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
            homography = to_index @ K @ plane @ world
            size = (SIZE, SIZE)
            covered = cv2.warpPerspective(np.ones((side, side), np.uint8), homography, size)
            warped = cv2.warpPerspective(texture, homography, size, flags=cv2.INTER_AREA)
            picture = np.where(covered[..., None] > 0, warped, picture)
        options = {}
        if view == TURNED:
            picture, options = np.rot90(picture), {"exif": exif}
        Image.fromarray(picture).save(folder / f"{view}.png", **options)
    return folder


def assert_same_cameras(found, true, degrees, share):
    """Cameras agree after the best similarity: rotations within degrees, centres within a share."""
    a, b = (poses[:, :3, 3].astype(float) for poses in (found, true))
    a_mean, b_mean = a.mean(0), b.mean(0)
    # rotations fix the turn, whatever line the centres lie on
    u, _, vt = np.linalg.svd(sum(t[:3, :3] @ f[:3, :3].T for f, t in zip(found, true, strict=True)))
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    moved = (a - a_mean) @ turn.T
    scale = (moved * (b - b_mean)).sum() / (moved**2).sum()
    spread = np.linalg.norm(b - b_mean, axis=1).max()
    assert np.abs(scale * moved - (b - b_mean)).max() < share * spread
    turns = (turn @ found[:, :3, :3]).swapaxes(1, 2) @ true[:, :3, :3]
    angles = np.degrees(np.arccos(((np.trace(turns, axis1=1, axis2=2) - 1) / 2).clip(-1, 1)))
    assert angles.max() < degrees


def test_cameras_of_photos_are_found_and_photos_are_turned_upright(tmp_path):
    folder = write_photos(tmp_path / "photos" / "one")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "phone.heic").write_bytes(b"ftypheic")
    Image.new("RGB", (SIZE, SIZE)).save(folder / "lid.png")  # shows nothing
    few = tmp_path / "photos" / "two"
    few.mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(few / "lid.png")
    options = ("--resolution", "0")
    source, report = run(image_folder, tmp_path / "photos", tmp_path / "out", *options)
    scene = source[0]
    assert (scene.scene_id, scene.source, scene.num_views) == ("one", "image_folder", PHOTOS)
    true, K = true_cameras()
    # 192 pixels and one shared lens that is found as well
    assert_same_cameras(scene.c2w, true, degrees=1.5, share=0.05)
    np.testing.assert_allclose(scene.K[:, 0, 0], K[0, 0], rtol=0.05)
    note = report["notes"]["one"]
    assert note["photos"] == PHOTOS + 3
    assert report["views_left_out"] == 3
    assert note["left_out"].keys() == {"empty.jpg", "phone.heic", "lid.png"}
    assert "it is empty" in note["left_out"]["empty.jpg"]
    assert "could not register" in note["left_out"]["lid.png"]
    assert [entry["scene_id"] for entry in report["skipped"]] == ["two"]
    assert "1 photos can be read; at least 3 are needed" in report["skipped"][0]["reason"]
    assert {path.suffix for path in (tmp_path / "out").iterdir()}.isdisjoint({".db", ".import"})
    kept = ("--scenes", str(tmp_path / "kept"))
    run(image_folder, tmp_path / "photos", tmp_path / "again", *options, *kept)
    again = shards.open_shards(tmp_path / "again")
    assert shards.encode_scene(again[0]) == shards.encode_scene(scene)
    views = open_views(tmp_path / "kept" / "one")  # what escherjax.sample --views reads
    np.testing.assert_allclose(views.c2w, scene.c2w, atol=1e-6)
    assert views.fit(32, None).images.shape == (3, 32, 32, 3)


def test_photos_of_nothing_and_folders_without_photos_are_refused(tmp_path):
    folder = tmp_path / "blank"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (9 * number, 0, 0)).save(folder / f"{number}.png")
    with pytest.raises(UserError, match="COLMAP registered 0 of 3 photos; at least 3 are needed"):
        run(image_folder, folder, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no scenes in .*folders with photos"):
        run(image_folder, tmp_path / "none", tmp_path / "out2")


def test_phone_photos_agree_with_the_model_of_more_and_larger_ones(data_dir, tmp_path):
    from escherjax.data.formats import colmap

    folder = data_dir / "colmap_plush"
    source, report = run(image_folder, folder / "images", tmp_path / "out", "--resolution", "64")
    known = colmap.read_views(folder / "sparse" / "0", folder / "images")
    left_out = report["notes"]["images"]["left_out"]
    true = np.stack([pose for path, pose, _ in known if path.name not in left_out])
    assert source[0].num_views == len(true) >= 18
    # The model was made of twice as many photos at twice the size; a wrong axis gives 90 degrees
    assert_same_cameras(source[0].c2w, true, degrees=2.0, share=0.05)
    assert images.decode_image(source[0].images[0], "view").shape[2] == 3
