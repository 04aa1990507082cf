"""COLMAP and MVImgNet importers: known points on known pixels, through every lens."""

import sys

import numpy as np
import pytest
from PIL import Image

from data_prep import colmap, mvimgnet
from data_prep.inspect.epipolar import check_scene
from escherjax import cameras
from escherjax.data import images
from escherjax.data.formats import colmap as data_colmap
from escherjax.data.formats import folders
from escherjax.errors import UserError
from tests.helpers.colmap_folders import (
    HEIGHT,
    POINTS,
    VIEWS,
    WIDTH,
    askew,
    askew_cameras,
    picture_name,
    project_pinhole,
    project_simple_radial,
    write_scene,
)
from tests.helpers.scene_folders import assert_balls_where_projected, run

pycolmap = pytest.importorskip("pycolmap")

# Blots of 2 pixels on 96: centroids of 8-bit blots, bent a little by the lens, are that near.
TOLERANCE = 0.25
RADIAL = ("SIMPLE_RADIAL", (90.0, 49.0, 35.0, 0.3))
EYE = np.eye(3).tolist()
KEEP = ("--up", "file", "--normalize", "none", "--resolution", "0")


def radial(points):
    return project_simple_radial(points, *RADIAL[1])


def write_radial(folder, **options):
    return write_scene(folder, *RADIAL, radial, **options)


def placed(points, note):
    """Points of the file's world where the report says that they went."""
    return note["scale"] * (points @ np.transpose(note["rotation"]) - note["center"])


@pytest.mark.parametrize("binary", [True, False])
def test_known_points_are_seen_where_the_file_s_own_cameras_project_them(tmp_path, binary):
    folder = write_radial(tmp_path / "one", binary=binary)
    source, report = run(colmap, folder, tmp_path / "out", *KEEP)
    scene = source[0]
    assert (scene.scene_id, scene.source, scene.num_views) == ("one", "colmap", VIEWS)
    order = sorted(range(VIEWS), key=picture_name)
    np.testing.assert_allclose(scene.c2w, askew_cameras()[order], atol=1e-5)
    assert_balls_where_projected(scene, askew(POINTS).astype(np.float32), TOLERANCE)
    assert report["notes"]["one"] == {"scale": 1.0, "center": [0.0] * 3, "rotation": EYE}


def test_world_is_turned_upright_centred_and_scaled_and_points_stay_on_their_pixels(tmp_path):
    write_radial(tmp_path / "a" / "one")
    source, report = run(colmap, tmp_path / "a", tmp_path / "out", "--resolution", "36")
    scene, note = source[0], report["notes"]["one"]
    assert min(scene.height, scene.width) == 36
    assert_balls_where_projected(scene, placed(askew(POINTS), note).astype(np.float32), TOLERANCE)
    # All cameras stand on one ring and look at its axis: level rows, one radius.
    np.testing.assert_allclose(scene.c2w[:, 2, 0], 0, atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(scene.c2w[:, :3, 3], axis=-1), 1.5, rtol=1e-4)
    assert (scene.c2w[:, 2, 3] > 0.5).all()  # above, as they were before the world was turned
    shown = folders.read_scene_folder(tmp_path / "a" / "one")  # what escherjax.sample --views reads
    np.testing.assert_allclose(shown.c2w, scene.c2w, atol=1e-6)


def lens(name, width=WIDTH, height=HEIGHT):
    """A camera of pycolmap's model `name`, with some of each kind of distortion."""
    camera = pycolmap.Camera.create_from_model_name(7, name, 90.0, width, height)
    params = np.array(camera.params)
    for place in camera.extra_params_idxs():
        label = camera.params_info.split(", ")[place]
        params[place] = {"omega": 0.4, "alpha": 0.4, "beta": 1.1}.get(label, 0.01)
        if label in ("k", "k1"):
            params[place] = 0.1
    camera.params = params
    return camera


@pytest.mark.parametrize(
    "name",
    [n for n in pycolmap.CameraModelId.__members__ if n not in ("INVALID", "EQUIRECTANGULAR")],
)
def test_every_camera_model_becomes_a_pinhole(tmp_path, name):
    camera = lens(name)
    project = camera.img_from_cam
    folder = write_scene(tmp_path / "one", name, camera.params, project, binary=False)
    views = read(folder)
    scene = folders.assemble_scene("one", "colmap", views)
    assert_balls_where_projected(scene, askew(POINTS).astype(np.float32), TOLERANCE)


def read(folder, **options):
    return data_colmap.read_views(folder / "sparse" / "0", folder / "images", **options)


def test_oblong_pixels_become_square(tmp_path):
    params = (90.0, 60.0, 49.0, 35.0)
    write_scene(tmp_path / "one", "PINHOLE", params, lambda p: project_pinhole(p, *params))
    source, _ = run(colmap, tmp_path, tmp_path / "out", *KEEP)
    scene = source[0]
    assert (scene.height, scene.width) == (HEIGHT, 64)
    np.testing.assert_allclose(scene.K[:, 0, 0], scene.K[:, 1, 1])
    assert_balls_where_projected(scene, askew(POINTS).astype(np.float32), TOLERANCE)


def test_pinhole_pictures_keep_their_bytes_and_smaller_pictures_scale_the_camera(tmp_path):
    params = (90.0, 49.0, 35.0)

    def project(points):
        return project_pinhole(points, 90.0, *params)

    folder = write_scene(tmp_path / "one", "SIMPLE_PINHOLE", params, project)
    source, _ = run(colmap, folder, tmp_path / "out", *KEEP)
    names = sorted(picture_name(view) for view in range(VIEWS))
    files = [(folder / "images" / name).read_bytes() for name in names]
    assert list(source[0].images) == files
    for name in names:
        small = folder / "images_2" / name
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / "images" / name).reduce(2).save(small)
    source, _ = run(colmap, folder, tmp_path / "out2", *KEEP, "--images", "images_2")
    assert (source[0].height, source[0].width) == (HEIGHT // 2, WIDTH // 2)
    assert_balls_where_projected(source[0], askew(POINTS).astype(np.float32), TOLERANCE)


def test_cameras_with_different_lenses_give_one_size(tmp_path):
    folder = write_radial(tmp_path / "one", binary=False)
    model = folder / "sparse" / "0"
    first = picture_name(0)
    other = (90.0, 49.0, 35.0, -0.1)  # its picture grows where the first's shrinks
    cameras_file, images_file = model / "cameras.txt", model / "images.txt"
    numbers = " ".join(map(str, other))
    text = cameras_file.read_text() + f"8 SIMPLE_RADIAL {WIDTH} {HEIGHT} {numbers}\n"
    cameras_file.write_text(text)
    images_file.write_text(images_file.read_text().replace(f" 7 {first}", f" 8 {first}"))
    again = tmp_path / "again"
    write_scene(again, "SIMPLE_RADIAL", other, lambda p: project_simple_radial(p, *other))
    (again / "images" / first).replace(folder / "images" / first)
    scene = folders.assemble_scene("one", "colmap", read(folder))
    assert_balls_where_projected(scene, askew(POINTS).astype(np.float32), TOLERANCE)


def test_missing_pycolmap_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    folder = write_radial(tmp_path / "7" / "one")
    for module, source in ((colmap, folder), (mvimgnet, tmp_path)):
        with pytest.raises(UserError, match=r"^COLMAP models need pycolmap: pip install .*prep"):
            run(module, source, tmp_path / "out")


def damage(folder, how):
    """Damages one binary COLMAP folder."""
    model, pictures = folder / "sparse" / "0", folder / "images"
    if how.endswith(".bin"):
        data = (model / how).read_bytes()
        (model / how).write_bytes(data[: len(data) // 2])
    elif how == "pictures missing":
        for view in (1, 3):
            (pictures / picture_name(view)).unlink()
    elif how == "picture empty":
        (pictures / picture_name(1)).write_bytes(b"")
    elif how == "picture turned":
        path = pictures / picture_name(1)
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    elif how == "NaN focal length":
        data = bytearray((model / "cameras.bin").read_bytes())
        data[32:40] = np.float64(np.nan).tobytes()
        (model / "cameras.bin").write_bytes(data)
    elif how == "panorama":
        for path in model.iterdir():
            path.unlink()
        other = write_radial(folder.parent.parent / "text", binary=False) / "sparse" / "0"
        for path in other.iterdir():
            text = path.read_text().replace("SIMPLE_RADIAL", "EQUIRECTANGULAR")
            (model / path.name).write_text(
                text.replace(" 90.0 49.0 35.0 0.3", f" {WIDTH} {HEIGHT}")
            )


DAMAGES = {
    "cameras.bin": "cameras.bin has 32 bytes, but its list takes 64",
    "images.bin": "is not a whole COLMAP model",
    "pictures missing": f"{picture_name(1)} not found",
    "picture empty": f"{picture_name(1)} cannot be decoded (it is empty)",
    "picture turned": f"has {HEIGHT} x {WIDTH} pixels, its camera {WIDTH} x {HEIGHT}",
    "NaN focal length": "a camera with parameters [nan",
    "panorama": "EQUIRECTANGULAR, which no pinhole camera can stand for",
}


def test_unusable_models_are_skipped_with_every_reason(tmp_path):
    for how in DAMAGES:
        damage(write_radial(tmp_path / "source" / how), how)
    damage(write_radial(tmp_path / "source" / "good"), "points3D.bin")  # these are not needed
    source, report = run(colmap, tmp_path / "source", tmp_path / "out")
    assert [source[i].scene_id for i in range(len(source))] == ["good"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    assert reasons.keys() == DAMAGES.keys()
    for how, reason in DAMAGES.items():
        assert reason in reasons[how]
    assert f"{picture_name(3)} not found" in reasons["pictures missing"]


def test_picture_names_that_leave_the_folder_are_refused(tmp_path):
    folder = write_radial(tmp_path / "one", name_of=lambda view: f"../outside-{view}.png")
    with pytest.raises(UserError, match=r"'\.\./outside-0\.png' leads out of"):
        read(folder)


def test_cameras_without_a_common_up_are_refused_and_a_row_of_cameras_keeps_its_up():
    c2w = askew_cameras()[:1].repeat(4, 0)
    turned, rotation = cameras.upright_scene(c2w)
    np.testing.assert_allclose(-turned[:, 2, 1], 1, atol=1e-6)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    c2w[2:, :3, :2] *= -1  # half of them upside down
    with pytest.raises(UserError, match="up directions cancel out"):
        cameras.upright_scene(c2w)


def write_mvimgnet(root):
    def name_of(view):
        return f"{view:03d}.png"

    for number, instance in enumerate(("7/0a", "7/0b", "12/0c")):
        folder = write_radial(root / instance, name_of=name_of)
        inside = folder / "masks" if number else root.parent / "mask" / instance
        inside.mkdir(parents=True)
        for view in range(VIEWS):
            picture = np.asarray(Image.open(folder / "images" / name_of(view)))
            Image.fromarray(picture[..., :3]).save(folder / "images" / name_of(view))
            mask = (picture[..., :3].max(-1) > 2).astype(np.uint8)  # 0 and 1
            Image.fromarray(mask).save(inside / (f"{view:03d}.png" + (".png" if number else "")))
    (root / "12" / "0d" / "images").mkdir(parents=True)
    return root


def test_mvimgnet_reads_instances_of_classes_with_masks_as_alpha(tmp_path):
    root = write_mvimgnet(tmp_path / "root")
    source, report = run(mvimgnet, root, tmp_path / "out", "--masks", "masks", *KEEP)
    assert [source[i].scene_id for i in range(len(source))] == ["12/0c", "7/0b"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    assert "0d has no COLMAP model" in reasons["12/0d"]
    assert "has no mask for 000.png" in reasons["7/0a"] and "003.png" in reasons["7/0a"]
    options = ("--masks", str(tmp_path / "mask"), "--classes", "7", "--limit", "1", *KEEP)
    alone, _ = run(mvimgnet, root, tmp_path / "out2", *options)
    assert alone[0].scene_id == "7/0a" and alone[0].source == "mvimgnet"
    for scene in (source[0], alone[0]):
        assert_balls_where_projected(scene, askew(POINTS).astype(np.float32), TOLERANCE)
        alpha = images.decode_image(scene.images[0], "view")[..., 3]
        assert 0.02 < (alpha == 255).mean() < 0.5 < (alpha == 0).mean()
    with pytest.raises(UserError, match="has no folder 13, 14"):
        run(mvimgnet, root, tmp_path / "out3", "--classes", "14,7,13")


def test_phone_capture_agrees_with_its_pictures_and_text_with_binary(data_dir, tmp_path):
    pytest.importorskip("cv2")
    folder = data_dir / "colmap_plush"
    source, _ = run(colmap, folder, tmp_path / "bin", "--resolution", "0")
    run(colmap, folder, tmp_path / "txt", "--resolution", "0", "--model", "sparse_txt/0")
    shard = "scenes-train.array_record-00000-of-00001"
    assert (tmp_path / "bin" / shard).read_bytes() == (tmp_path / "txt" / shard).read_bytes()
    scene = source[0]
    assert scene.num_views == 24
    # The model's own reprojection error is 0.44 px; its views measure 0.28 to 0.75.
    # Cameras of another convention are tens of pixels off.
    agreement = check_scene(scene)
    assert agreement.matches.sum() > 1000
    assert np.nanmax(agreement.distance) < 1.0
