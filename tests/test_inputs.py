"""Reference views of every kind: what is done to each, what is said about it, what is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from escherjax import cameras
from escherjax.cameras import PUBLISHED_FOV_DEG, Cameras
from escherjax.data import images, inputs
from escherjax.data.formats import folders
from escherjax.data.inputs import named_cameras, open_views, read_inputs
from escherjax.data.photos import windows
from escherjax.data.rows import read_views
from escherjax.errors import UserError
from escherjax.sample import __main__ as sample
from escherjax.weights.facts import ModelCard
from tests.helpers.scene_folders import blender_pose

R = 64
POSES = cameras.from_spherical(np.full(3, 1.2), np.array([0.0, 1.0, 2.0]), np.full(3, 1.8))


def drawn(height=80, width=120, box=(40, 20, 90, 60), alpha=True, background=255):
    """A dark box before nothing, or before a grey level."""
    left, top, right, bottom = box
    picture = np.full((height, width, 4), 0 if alpha else background, np.uint8)
    picture[top:bottom, left:right] = (30, 60, 90, 255)
    return picture if alpha else picture[..., :3].copy()


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_scene(folder, pictures, fov_deg=PUBLISHED_FOV_DEG, poses=POSES, **fields):
    """transforms.json of pictures of any sizes, intrinsics in each frame."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = []
    for number, (picture, c2w) in enumerate(zip(pictures, poses, strict=False)):
        height, width = picture.shape[:2]
        K = cameras.intrinsics_from_fov(np.radians(fov_deg), min(height, width), 1)
        Image.fromarray(picture).save(folder / f"{number}.png")
        frames.append(
            {
                "file_path": f"{number}.png",
                "transform_matrix": blender_pose(c2w).tolist(),
                "fl_x": float(K[0, 0]),
                "w": width,
                "h": height,
                "cx": width / 2,
                "cy": height / 2,
            }
        )
    (folder / "transforms.json").write_text(json.dumps({**fields, "frames": frames}))
    return folder


def fov_of(K):
    return [windows.fov_deg_of(focal, R) for focal in (K[0, 0], K[1, 1])]


def warnings_of(notes):
    return [str(note) for note in notes if note.is_warning]


@pytest.mark.parametrize(("fov_deg", "how"), [(30.0, "padded with white"), (80.0, "cut")])
def test_objects_of_scenes_get_the_training_field_of_view(tmp_path, fov_deg, how):
    box = (50, 30, 70, 52)
    pictures = [drawn(box=box), drawn(100, 80, (30, 40, 50, 60)), drawn(box=box, alpha=False)]
    read = read_inputs(write_scene(tmp_path, pictures, fov_deg), R)
    assert read.images.shape == (3, R, R, 3) and read.images.dtype == np.float32
    for K in read.cameras.K:
        assert fov_of(K) == pytest.approx([PUBLISHED_FOV_DEG] * 2, rel=1e-6)
        np.testing.assert_allclose(K[:2, 2], R / 2, rtol=1e-6)
    np.testing.assert_allclose(read.cameras.c2w, POSES, atol=1e-6)
    assert all(f"{fov_deg:.1f} degrees made 49.1, {how}" in note.text for note in read.notes)
    assert (read.images[:, 0] == 1).all() and (read.images[:, :, -1] == 1).all()
    assert read.images.min() < 0.2


def test_pictures_with_the_training_field_of_view_are_those_of_training(tmp_path):
    folder = write_scene(tmp_path, [drawn(), drawn(80, 120), drawn(80, 120)])
    scene = folders.read_scene_folder(folder)
    expected, c2w, K = read_views(scene, np.array([2, 0]), R, "white")
    read = read_inputs(folder, R, references=[2, 0])
    np.testing.assert_array_equal(read.images, expected / np.float32(255))
    np.testing.assert_allclose(read.cameras.K, K, rtol=1e-6)
    np.testing.assert_array_equal(read.cameras.c2w, c2w)
    assert all("field of view 49.1 degrees as in training" in note.text for note in read.notes)
    kept = read_inputs(folder, R, None, references=[2, 0])
    np.testing.assert_array_equal(kept.images, read.images)


def test_opaque_scenes_are_cut_but_nothing_is_added(tmp_path):
    opaque = drawn(alpha=False, background=120)
    wide = read_inputs(write_scene(tmp_path / "wide", [opaque], 80), R)
    assert fov_of(wide.cameras.K[0]) == pytest.approx([PUBLISHED_FOV_DEG] * 2, rel=1e-6)
    assert not warnings_of(wide.notes)
    narrow = read_inputs(write_scene(tmp_path / "narrow", [opaque], 30), R)
    assert fov_of(narrow.cameras.K[0]) == pytest.approx([30.0] * 2, rel=1e-6)
    assert (narrow.images < 1).all()
    (warning,) = warnings_of(narrow.notes)
    assert "0.png has a field of view of 30.0 degrees" in warning and "49.1" in warning
    alike = read_inputs(write_scene(tmp_path / "alike", [opaque], 48.8), R)
    assert not warnings_of(alike.notes)  # not worth a word, and not padded
    assert (alike.images < 1).all()


def test_pictures_elsewhere_are_read_and_named_by_their_whole_path(tmp_path):
    write_scene(tmp_path / "there", [drawn()] * 3)
    content = json.loads((tmp_path / "there/transforms.json").read_text())
    for frame in content["frames"]:
        frame["file_path"] = str(tmp_path / "there" / frame["file_path"])
    (tmp_path / "here").mkdir()
    (tmp_path / "here/transforms.json").write_text(json.dumps(content))
    here, there = (read_inputs(tmp_path / name, R) for name in ("here", "there"))
    np.testing.assert_array_equal(here.images, there.images)
    assert f"{tmp_path}/there/0.png: 120 x 80" in here.notes[0].text


def test_objects_that_are_cut_off_are_named(tmp_path):
    cut = read_inputs(write_scene(tmp_path / "a", [drawn(box=(0, 0, 120, 30))], 90), R)
    assert "that the training field of view cuts off" in warnings_of(cut.notes)[0]
    ends = read_inputs(write_scene(tmp_path / "b", [drawn(box=(50, 60, 70, 80))], 30), R)
    assert "ends at its bottom edge; white follows it" in warnings_of(ends.notes)[0]


def test_photo_of_an_object_is_centred_and_sized_as_in_training():
    for photo in (drawn(), drawn(alpha=False), Image.fromarray(drawn()), encoded(drawn())):
        read = read_inputs([photo], R, cameras=["front"], radius=2.0)
        expected = cameras.from_spherical(np.pi / 2, 0.0, 2.0)
        np.testing.assert_allclose(read.cameras.c2w[0], expected, atol=1e-6)
        assert fov_of(read.cameras.K[0]) == pytest.approx([PUBLISHED_FOV_DEG] * 2, rel=1e-6)
        dark = np.argwhere(read.images[0].min(-1) < 0.5)
        share = 1.06 * (280 / 256) / 2.0 * R
        # a pixel at each of two edges may fall to either side
        assert abs(np.ptp(dark[:, 1]) + 1 - share) <= 1.5
        assert abs(np.ptp(dark[:, 0]) + 1 - share * 40 / 50) <= 1.5
        np.testing.assert_allclose((dark.min(0) + dark.max(0) + 1) / 2, R / 2, atol=0.75)
        assert "box made 58% of the frame" in read.notes[0].text and not warnings_of(read.notes)


def test_photo_that_is_not_recentred_is_padded_to_a_square():
    read = read_inputs([drawn()], R, cameras=["front"], recenter=False)
    picture = np.full((120, 120, 4), 0, np.uint8)
    picture[20:100] = drawn()
    flat = images.on_background(picture, images.WHITE)
    expected = images.resize_image(flat, R, R) / np.float32(255)
    np.testing.assert_array_equal(read.images[0], expected)
    assert fov_of(read.cameras.K[0]) == pytest.approx([PUBLISHED_FOV_DEG] * 2, rel=1e-6)


def test_photo_with_intrinsics_stays_where_it_is():
    known = read_inputs([drawn()], R, cameras=["front"], photo_fov_deg=60.0)
    K = cameras.intrinsics_from_fov(np.radians(60), 120, 80)
    given = read_inputs([drawn()], R, cameras=Cameras(known.cameras.c2w, K[None]))
    np.testing.assert_array_equal(known.images, given.images)
    dark = np.argwhere(known.images[0].min(-1) < 0.5).mean(0) + 0.5
    right, down = 65 - 60, 40 - 40  # middle of the box from that of the photo
    scale = known.cameras.K[0, 0, 0] / K[0, 0]
    np.testing.assert_allclose(dark, [R / 2 + down * scale, R / 2 + right * scale], atol=0.5)


def test_photo_with_a_background_is_cut_and_the_network_is_said_to_know_none():
    read = read_inputs([drawn(alpha=False, background=120)], R, cameras=["front"])
    assert (read.images < 1).all()
    assert "neither white nor transparent" in warnings_of(read.notes)[0]


def test_photos_are_turned_upright_and_scenes_are_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = drawn(120, 80, (10, 20, 70, 40))
    stored = np.ascontiguousarray(np.rot90(upright))
    turned = read_inputs([encoded(stored, exif=exif)], R, cameras=["front"])
    expected = read_inputs([upright], R, cameras=["front"])
    np.testing.assert_array_equal(turned.images, expected.images)
    assert "turned upright" in turned.notes[0].text
    write_scene(tmp_path, [stored])
    plain = read_inputs(tmp_path, R)
    (tmp_path / "0.png").write_bytes(encoded(stored, exif=exif))
    np.testing.assert_array_equal(read_inputs(tmp_path, R).images, plain.images)


def test_named_cameras_stand_where_they_say():
    c2w = named_cameras(["front", "right", "Back:10", "45:20:1.8", "270"], 30.0, 2.0)
    positions = c2w[:, :3, 3]
    level, up = np.cos(np.radians(30)), np.sin(np.radians(30))
    np.testing.assert_allclose(positions[0], [2 * level, 0, 2 * up], atol=1e-6)
    np.testing.assert_allclose(positions[1], [0, 2 * level, 2 * up], atol=1e-6)
    polar, azimuth, radius = cameras.to_spherical(c2w)
    np.testing.assert_allclose(90 - np.degrees(polar), [30, 30, 10, 20, 30], atol=1e-4)
    np.testing.assert_allclose(np.degrees(azimuth) % 360, [0, 90, 180, 45, 270], atol=1e-4)
    np.testing.assert_allclose(radius, [2, 2, 2, 1.8, 2], rtol=1e-6)
    # what is at the right of the front photo is seen by the camera called right
    ((u, _),) = cameras.project(positions[1:2] / 2, c2w[0], np.eye(3))[0]
    assert u > 0
    with pytest.raises(UserError) as error:
        named_cameras(["above", "0:91", "0:0:0", "1:2:3:4", "nan"])
    for text in ("'above'", "elevation 91", "radius 0", "'1:2:3:4'", "'nan'"):
        assert text in str(error.value)


def test_masks_become_alpha(tmp_path):
    opaque = drawn(alpha=False, background=120)
    mask = np.where(drawn()[..., 3] > 0, 200, 0).astype(np.uint8)
    expected = read_inputs([np.dstack([opaque, mask])], R, cameras=["front"]).images
    Image.fromarray(opaque).save(tmp_path / "photo.jpg", quality=100, subsampling=0)
    Image.fromarray(opaque).save(tmp_path / "photo.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "photo.png")
    for place in (tmp_path / "masks" / "photo.png", tmp_path / "masks"):
        read = read_inputs([tmp_path / "photo.png"], R, cameras=["front"], masks=[place])
        np.testing.assert_array_equal(read.images, expected)
        assert "background by photo.png" in read.notes[0].text
    labels = (mask > 0).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    hard = read_inputs([opaque], R, cameras=["front"], masks=[tmp_path / "labels.png"]).images
    np.testing.assert_array_equal(hard, read_inputs([drawn()], R, cameras=["front"]).images)


def test_only_the_references_are_read_and_every_broken_one_is_named(tmp_path):
    folder = write_scene(tmp_path, [drawn()] * 3)
    (folder / "0.png").write_bytes(b"")
    (folder / "2.png").write_bytes(b"no picture")
    assert len(read_inputs(folder, R, references=[1]).images) == 1
    with pytest.raises(UserError, match=r"0\.png.*2\.png"):
        open_views(folder)


def test_views_named_twice_and_radii_that_are_none_are_refused(tmp_path):
    folder = write_scene(tmp_path, [drawn()] * 3)
    with pytest.raises(UserError, match="name a view more than once"):
        read_inputs(folder, R, references=[1, 0, 1])
    for radius in (0.0, -1.5, float("nan")):
        with pytest.raises(UserError, match="radius .*positive"):
            read_inputs(folder, R, max_radius=radius)


def broken(tmp_path):
    """Name of each bad input -> (views, options, what the message says)."""
    scene = write_scene(tmp_path / "scene", [drawn()] * 3)
    plain, numbered, empty = (tmp_path / name for name in ("plain", "numbered", "empty"))
    for folder, names in ((plain, "abc"), (numbered, ("000", "001")), (empty, ())):
        folder.mkdir()
        for name in names:
            Image.fromarray(drawn()).save(folder / f"{name}.png")
    lost = write_scene(tmp_path / "lost", [drawn()] * 2)
    content = json.loads((lost / "transforms.json").read_text())
    del content["frames"][1]["transform_matrix"]
    (lost / "transforms.json").write_text(json.dumps(content))
    bad_pose = POSES.copy()
    bad_pose[1, 0, 3] = np.nan
    unset = write_scene(tmp_path / "nan", [drawn()] * 2, poses=bad_pose)
    lens = write_scene(tmp_path / "lens", [drawn()], fov_deg=np.nan)
    front = {"cameras": ["front"]}
    cmyk = encoded(Image.fromarray(drawn()).convert("CMYK"), "JPEG")
    blank = np.zeros((8, 8, 4), np.uint8)
    noise = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    small = encoded(np.zeros((8, 8), np.uint8))
    (tmp_path / "small.png").write_bytes(small)
    mask = {"masks": [tmp_path / "small.png"]}
    return {
        "no camera": ([encoded(drawn())], {}, "came without a camera.*--camera front"),
        "photo file": (plain / "a.png", {}, "a.png came without a camera"),
        "plain folder": (plain, {}, "holds 3 pictures but no cameras.*--cameras.*image_folder"),
        "numbered photos": (numbered, {}, "holds 2 pictures but no cameras"),
        "empty folder": (empty, {}, "is not a scene folder"),
        "empty folder, cameras": (empty, front, "holds no pictures"),
        "nothing": ([], front, "holds no pictures"),
        "missing": (tmp_path / "none", {}, "neither a folder nor a picture"),
        "missing photos": (
            [plain / "x.png", plain / "y.png"],
            {"cameras": ["0", "90"]},
            "x.png cannot be read.*y.png cannot be read",
        ),
        "too few cameras": (plain, front, "3 photos but 1 cameras"),
        "no references": (scene, {"references": []}, "one view at least"),
        "reference 9": (scene, {"references": [0, 9]}, "views 0 to 2"),
        "pose missing": (lost, {}, "has no pose"),
        "pose NaN": (unset, {}, "view 1 holds NaN"),
        "focal length NaN": (lens, {}, "intrinsics.*positive focal"),
        "pose of a photo": ([drawn()], {"cameras": Cameras(bad_pose[1:2])}, "holds NaN"),
        "K of a photo": (
            [drawn()],
            {"cameras": Cameras(POSES[:1], np.zeros((1, 3, 3)))},
            "positive focal",
        ),
        "print colours": ([cmyk], front, "mode 'CMYK'"),
        "no picture": ([b"hello"], front, "whole PNG, JPEG or WebP"),
        "empty alpha": ([blank], front, "picture 0 is transparent everywhere"),
        "all white": ([np.full((8, 8, 3), 255, np.uint8)], front, "white everywhere"),
        "float array": ([np.zeros((8, 8, 3))], front, "uint8"),
        "16-bit grey": ([Image.new("I;16", (8, 8))], front, "picture 0 .* of mode 'I;16'"),
        "damaged": ([Image.open(io.BytesIO(noise[: len(noise) // 2]))], front, "be decoded"),
        "number": ([3], front, "a file.*of type int"),
        "mask of another size": ([drawn()], {**front, **mask}, "has 8 x 8 pixels, picture 0 120"),
        "too few masks": ([drawn()] * 2, {"cameras": ["0", "1"], **mask}, "1 masks for 2"),
        "mask and matting": ([drawn()], {**front, **mask, "matting": "u2net"}, "choose one"),
        "field of view": ([drawn()], {**front, "photo_fov_deg": 180.0}, "under 180"),
        "field of view of a scene": (scene, {"photo_fov_deg": 50.0}, "intrinsics of their own"),
    }


def test_bad_inputs_are_refused_with_advice(tmp_path):
    for name, (views, options, reason) in broken(tmp_path).items():
        with pytest.raises(UserError, match=f"(?s){reason}"):
            read_inputs(views, R, **options)
            pytest.fail(f"{name}: not refused")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_photos_are_refused_by_their_headers(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80 * 120 - 1)
    with pytest.raises(UserError, match="picture 0 is too large: 120 x 80 pixels"):
        read_inputs([encoded(drawn())], R, cameras=["front"])


def test_distances_that_training_did_not_have_are_named():
    far, near = POSES.copy(), POSES.copy()
    far[:, :3, 3] *= 4.0 / 1.8
    near[:, :3, 3] *= 1.4 / 1.8
    six, four = (ModelCard(name, camera_radius=(1.5, 2.2)) for name in ("6dof", "4dof"))
    (note,) = map(str, inputs.radius_notes(far, "references", six))
    assert "references stand 4 to 4" in note and "1.5 to 2.2" in note and "--max-radius" in note
    assert not inputs.radius_notes(near, "references", six)
    (note,) = map(str, inputs.radius_notes(near, "targets", four))
    assert "4DoF clips distances to [1.5, 2.2]" in note and "3 of 3" in note
    assert not inputs.radius_notes(POSES, "references", four)
    assert not inputs.radius_notes(far, "references", ModelCard("6dof"))


def test_the_scene_is_scaled_before_distances_are_judged(tmp_path):
    far = POSES.copy()
    far[:, :3, 3] *= 3
    folder = write_scene(tmp_path, [drawn()] * 3, poses=far)
    facts = ModelCard("6dof", camera_radius=(1.5, 2.2))
    assert warnings_of(read_inputs(folder, R, facts=facts).notes)
    read = read_inputs(folder, R, facts=facts, max_radius=1.5)
    assert not warnings_of(read.notes)
    np.testing.assert_allclose(np.linalg.norm(read.cameras.c2w[:, :3, 3], axis=-1), 1.5, rtol=1e-6)


def test_the_command_refuses_bad_pictures_before_it_loads_weights(tmp_path):
    Image.fromarray(drawn()).save(tmp_path / "photo.png")
    common = ["--weights", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--views"]
    with pytest.raises(UserError, match="photo.png came without a camera"):
        sample.main([*common, str(tmp_path / "photo.png")])
    with pytest.raises(UserError, match="holds 1 pictures but no cameras"):
        sample.main([*common, str(tmp_path)])
    with pytest.raises(UserError, match="field of view is 0 degrees"):
        sample.main([*common, str(tmp_path), "--training-fov-deg", "0"])
    with pytest.raises(UserError, match="field of view is 200 degrees"):
        read_inputs([drawn()], R, 200.0, cameras=["front"])
