"""One visitor's work: what is taken, what is refused and how that is said."""

import io
import json
import subprocess
import warnings
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image, ImageSequence

from escherjax import cameras
from escherjax.data.formats import transforms
from escherjax.demo import panels
from escherjax.demo.jobs import LinearDecoder
from escherjax.demo.limits import Limits, safe_label
from escherjax.demo.session import CUSTOM_PATH, Session, spherical_of
from escherjax.errors import UserError
from escherjax.models.diffusion.sampling import Sampling

RED, WHITE = (200, 30, 20), (255, 255, 255)
LIMITS = Limits(upload_bytes=100_000, picture_pixels=90_000, references=4, targets=10, viewpoints=3)


@pytest.fixture
def session():
    return Session(16, LIMITS, Sampling(25, 3.0))


def encoded(array, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def photo(height=20, width=20, color=RED):
    return np.broadcast_to(np.uint8(color), (height, width, len(color)))


def transforms_json(poses):
    frames = [
        {"file_path": name, "transform_matrix": cameras.opengl_from_opencv(c2w).tolist()}
        for name, c2w in poses.items()
    ]
    return json.dumps({"camera_angle_x": 0.8575, "frames": frames}).encode()  # as in training


def test_pictures_come_as_square_of_the_networks_size_from_side_after_side(session):
    for _ in range(4):
        session.add_picture("a.png", encoded(photo()))
    assert [r.image.shape for r in session.references] == [(16, 16, 3)] * 4
    azimuths = [round(spherical_of(r.c2w[:3, 3])[0]) for r in session.references]
    assert azimuths == [0, 90, -180, -90] or azimuths == [0, 90, 180, -90]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "cannot be decoded"),
        (b"GIF89a not a picture", "cannot be decoded"),
        (encoded(photo())[:60], "cannot be decoded"),
        (bytes(100_001), "at most 0.1 MB, got 0.1 MB"),
        (encoded(photo(400, 300)), "at most 0.1 million pixels, got 300 x 400"),
        (encoded(photo(8, 8, (1, 2, 3, 0))), "transparent everywhere"),
    ],
)
def test_bad_files_are_refused_by_what_is_wrong_and_leave_nothing(session, data, found):
    with pytest.raises(UserError, match=f"bad.png.*{found}"):
        session.add_picture("bad.png", data)
    assert session.references == []


def test_more_pictures_than_the_page_takes_are_refused(session):
    for _ in range(4):
        session.add_picture("a.png", encoded(photo()))
    with pytest.raises(UserError, match="4 pictures are here already"):
        session.add_picture("a.png", encoded(photo()))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\cat.png", "cat.png"),
        ("a\x00b\u202egnp.exe\n", "abgnp.exe"),
        ("/", "unnamed"),
        ("x" * 300 + ".jpeg", "x" * 34 + "….jpeg"),
    ],
)
def test_file_names_become_labels_without_folders_and_tricks(name, shown):
    assert safe_label(name) == shown


def test_a_camera_stands_where_its_sliders_say_and_looks_at_the_object(session):
    session.add_picture("a.png", encoded(photo()))
    session.set_camera(0, 30.0, -20.0, 2.0)
    c2w = session.references[0].c2w
    np.testing.assert_allclose(spherical_of(c2w[:3, 3]), (30, -20, 2), atol=1e-4)  # float32
    np.testing.assert_allclose(c2w[:3, 2], -c2w[:3, 3] / 2, atol=1e-6)


@pytest.mark.parametrize("values", [(np.nan, 0, 2), (0, 89, 2), (0, 0, 0.2), (0, np.inf, np.nan)])
def test_cameras_beyond_the_sliders_are_refused(session, values):
    session.add_picture("a.png", encoded(photo()))
    before = session.references[0].c2w
    with pytest.raises(UserError, match="must be .* got"):
        session.set_camera(0, *values)
    with pytest.raises(UserError, match="no picture 2"):
        session.set_camera(1, 0, 0, 2)
    assert session.references[0].c2w is before


def test_transforms_json_gives_pictures_of_its_names_their_cameras(session):
    poses = {
        "../images/a": cameras.from_spherical(1.0, 0.3, 1.9),
        "/etc/b.png": cameras.from_spherical(1.3, 2.0, 1.7),
    }
    for name in ("b.png", "c.png", "A.jpg"):
        session.add_picture(name, encoded(photo()))
    said = session.read_cameras(transforms_json(poses))
    np.testing.assert_allclose(session.references[0].c2w, poses["/etc/b.png"], atol=1e-6)
    np.testing.assert_allclose(session.references[2].c2w, poses["../images/a"], atol=1e-6)
    assert "2 pictures read" in said and "1 pictures are not in it" in said


def test_a_world_of_another_scale_is_brought_to_that_of_training(session):
    poses = {"a": cameras.from_spherical(1.0, 0.3, 4.0), "b": cameras.from_spherical(1.3, 2.0, 8.0)}
    for name in poses:
        session.add_picture(f"{name}.png", encoded(photo()))
    said = session.read_cameras(transforms_json(poses))
    radii = [np.linalg.norm(r.c2w[:3, 3]) for r in session.references]
    np.testing.assert_allclose(radii, [1.1, 2.2], rtol=1e-5)
    assert "scaled by 0.275" in said


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"{", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "lists no frames"),
        (transforms_json({"other": np.eye(4)}), "names other, none of which is here"),
        (transforms_json({"a": np.diag([1, 1, -1, 1.0])}), "mirrored"),
        (transforms_json({"a": 2 * np.eye(4)}), "not rigid"),
    ],
)
def test_bad_camera_files_are_refused_and_change_nothing(session, data, found):
    session.add_picture("a.png", encoded(photo()))
    before = session.references[0].c2w
    with pytest.raises(UserError, match=found):
        session.read_cameras(data)
    assert session.references[0].c2w is before


def test_a_path_turns_rises_and_is_bounded(session):
    session.set_path(num_views=4, start_azimuth_deg=10.0, elevation_deg=30.0, radius=2.0)
    where = np.array([spherical_of(c2w[:3, 3]) for c2w in session.targets().c2w])
    np.testing.assert_allclose(where[:, 0], [10, 100, -170, -80], atol=1e-3)
    np.testing.assert_allclose(where[:, 1:], [[30, 2]] * 4, atol=1e-4)
    with pytest.raises(UserError, match="got x.* got 1000000000"):
        session.set_path(name="x", num_views=10**9)
    with pytest.raises(UserError, match="elevation"):
        session.set_path(elevation_deg=float("nan"))
    assert len(session.targets().c2w) == 4


def test_a_path_of_ones_own_leads_through_its_viewpoints(session):
    session.set_path(name=CUSTOM_PATH, num_views=5)
    assert session.targets().c2w.shape == (0, 4, 4)
    session.add_viewpoint(np.array([2.0, 0.0, 0.0]))
    assert session.targets().c2w.shape == (1, 4, 4)
    session.add_viewpoint(np.array([0.0, 2.0, 0.5]))
    with pytest.raises(UserError, match="last viewpoint again"):
        session.add_viewpoint(np.array([0.0, 2.0, 0.5]))
    c2w = session.targets().c2w
    assert c2w.shape == (5, 4, 4)
    np.testing.assert_allclose(c2w[[0, -1]], session.viewpoints, atol=1e-5)  # float32
    session.move_viewpoint(1, np.array([0.0, 0.0, 50.0]))  # to the sliders' ends
    np.testing.assert_allclose(spherical_of(session.viewpoints[1][:3, 3])[1:], (85, 3), atol=1e-4)
    session.add_viewpoint(np.array([0.0, -2.0, 0.0]))
    with pytest.raises(UserError, match="are the most"):
        session.add_viewpoint(np.array([-2.0, 0.0, 0.0]))


def test_what_is_missing_for_a_drawing_is_named_all_at_once(session):
    session.set_path(name=CUSTOM_PATH)
    with pytest.raises(UserError, match="no picture yet.* no viewpoint yet"):
        session.request()


def test_settings_out_of_range_are_listed_all(session):
    with pytest.raises(
        UserError, match="steps.* got 0.*guidance.* got nan.*sampler.* got 'x'.*seed.* got -1"
    ):
        session.set_sampling(num_steps=0, guidance_scale=float("nan"), seed=-1, sampler="x")
    with pytest.raises(UserError, match="steps .* 101.*guidance_scale .* 20.5.*seed .* 2147483648"):
        session.set_sampling(num_steps=101, guidance_scale=20.5, seed=2**31)
    assert session.sampling == Sampling(25, 3.0)


def test_the_zip_holds_the_views_and_their_cameras(session, tmp_path):
    session.add_picture("a.png", encoded(photo()))
    session.set_path(num_views=3)
    request = session.request()
    views = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    with zipfile.ZipFile(io.BytesIO(panels.pictures_zip(request, views))) as archive:
        archive.extractall(tmp_path)
    for i in range(3):
        np.testing.assert_array_equal(Image.open(tmp_path / f"{i:03d}.png"), views[i])
    np.testing.assert_array_equal(Image.open(tmp_path / "references/000.png"), request.images[0])
    c2w = transforms.read_cameras(tmp_path / "transforms.json")
    np.testing.assert_allclose(c2w, request.targets.c2w, atol=1e-6)
    assert json.loads((tmp_path / "run.json").read_text())["num_steps"] == 25


def test_an_animation_shows_the_views_in_order_and_forks_no_process_of_threads(tmp_path):
    jax.devices()  # from here on JAX warns of forks
    views = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (0, 128, 255)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        name, data = panels.animation(views, closed=True)
    assert not [str(one.message) for one in caught if "fork" in str(one.message)]
    (tmp_path / name).write_bytes(data)
    if name == "views.gif":
        with Image.open(tmp_path / name) as gif:
            frames = np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(gif)])
    else:
        ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
        command = [ffmpeg, "-i", tmp_path / name, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        decoded = subprocess.run(command, capture_output=True, check=True).stdout
        frames = np.frombuffer(decoded, np.uint8).reshape(-1, 256, 256, 3)
    assert frames.shape[1:] == (256, 256, 3)
    # video is lossy
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), [0, 128, 255], atol=6)


def test_the_preview_is_exact_where_latents_are_rearranged_pixels(rng):
    def rearranged(images):
        blocks = images.reshape(len(images), 4, 4, 4, 4, 3).swapaxes(2, 3)
        return blocks.reshape(len(images), 4, 4, 48) * 2 - 1

    known, other = rng.random((4, 16, 16, 3)), rng.random((1, 16, 16, 3))
    decoder = LinearDecoder.fit(rearranged(known), known)
    # rounding to 8 bits
    np.testing.assert_allclose(decoder(rearranged(other)), other * 255, atol=0.51)


def test_the_preview_makes_nothing_of_what_hardly_varies(rng):
    latents, images = 1e-6 * rng.standard_normal((4, 4, 4, 8)), rng.random((4, 16, 16, 3))
    decoder = LinearDecoder.fit(latents, images)
    np.testing.assert_array_equal(decoder(np.ones((1, 4, 4, 8))), decoder(np.zeros((1, 4, 4, 8))))
