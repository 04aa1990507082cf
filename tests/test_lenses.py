"""Lenses of transforms.json: every field is applied or refused, a frame's lens is its own."""

import math

import numpy as np
import pytest

from data_prep import nerf_json
from escherjax.data.formats import folders
from escherjax.errors import UserError
from tests.helpers.colmap_folders import HEIGHT, POINTS, VIEWS, WIDTH
from tests.helpers.dot_folders import PINHOLE, write_dots
from tests.helpers.scene_folders import assert_balls_where_projected, run

F, CX, CY = 90.0, 49.0, 35.0
TOLERANCE = 0.25  # of a pixel, for centroids of 8-bit blots
NAN = float("nan")


def fisheye(k1=0.0, k2=0.0, k3=0.0, k4=0.0):
    """OpenCV's fisheye, from the angle to the axis."""

    def project(points):
        flat = np.hypot(points[:, 0], points[:, 1])
        angle = np.arctan2(flat, points[:, 2])
        length = angle + k1 * angle**3 + k2 * angle**5 + k3 * angle**7 + k4 * angle**9
        return F * points[:, :2] * (length / flat)[:, None] + [CX, CY]

    return project


def rational(k1=0.0, k2=0.0, k3=0.0, k4=0.0, k5=0.0, k6=0.0, p1=0.0, p2=0.0):
    """OpenCV's eight coefficients."""

    def project(points):
        x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
        r2 = x**2 + y**2
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
        v = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
        return F * np.stack([u, v], -1) + [CX, CY]

    return project


FISHEYE = {"k1": 0.2, "k2": -0.1, "k3": 0.05, "k4": -0.02}
RATIONAL = {"k1": 0.3, "k2": 0.05, "k4": 0.8, "k5": 0.2, "k6": 0.1}
APPLIED = {
    "instant-ngp fisheye": (fisheye(**FISHEYE), {"is_fisheye": True, **FISHEYE}),
    "fisheye by model": (fisheye(**FISHEYE), {"camera_model": "OPENCV_FISHEYE", **FISHEYE}),
    "both": (fisheye(), {"camera_model": "OPENCV_FISHEYE", "is_fisheye": True}),
    "equidistant": (fisheye(), {"is_fisheye": 1, "k1": 0, "p1": 0.0}),
    "radial fisheye": (fisheye(k1=0.3), {"camera_model": "SIMPLE_RADIAL_FISHEYE", "k1": 0.3}),
    "rational": (rational(**RATIONAL), {"camera_model": "FULL_OPENCV", **RATIONAL}),
    "rational by k5": (rational(k4=0.9), {"camera_model": "OPENCV", "k4": 0.9, "k5": 0, "k6": 0}),
    "tangential": (rational(k1=0.2, p1=0.05, p2=-0.04), {"k1": 0.2, "p1": 0.05, "p2": -0.04}),
    "nothing stated": (
        rational(),
        {
            "is_fisheye": False,
            "is_latlong": False,
            "ftheta_p0": 0.0,
            "k4": 0,
            "sk_x": 0,
            "lens": {"mode": "Perspective", "params": [0, 0]},
            "k1": None,
            "lens_mode": None,
        },
    ),
}


@pytest.mark.parametrize("case", APPLIED)
def test_points_lie_on_their_pixels_behind_every_lens_that_is_read(tmp_path, case):
    project, fields = APPLIED[case]
    write_dots(tmp_path / "scene", project, {**PINHOLE, **fields})
    shards, _ = run(
        nerf_json, tmp_path / "scene", tmp_path / "out", "--resolution", "0", "--normalize", "none"
    )
    assert_balls_where_projected(shards[0], POINTS.astype(np.float32), TOLERANCE)


@pytest.mark.parametrize("place", ["file", "frame"])
@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"k4": 0.3}, r"k4 = 0\.3 is not read.*FULL_OPENCV"),
        ({"is_latlong": True}, "is_latlong = True is not read"),
        ({"ftheta_p0": 0.1, "ftheta_p1": 0}, r"ftheta_p0 = 0\.1 is not read"),
        ({"lens": {"mode": "OpenCVFisheye", "params": [0, 0]}}, "lens = .*OpenCVFisheye"),
        ({"lens": "fisheye"}, "lens = 'fisheye'"),
        ({"sk_x": 0.01}, "sk_x = "),
        ({"s1": 0.01, "k1": 0.1}, "s1 = "),
        ({"distortion_params": [0, 0.1]}, "distortion_params"),
        ({"is_fisheye": True, "p1": 0.1}, "p1 = "),
        ({"is_fisheye": True, "k5": 0.1}, "k5 = "),
        ({"is_fisheye": True, "camera_model": "FULL_OPENCV"}, "is_fisheye .*FULL_OPENCV"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR.*unknown.*data_prep.colmap"),
        ({"camera_model": "FISHEYE624"}, "FISHEYE624.*unknown"),
        ({"k1": 1e300}, "k1.*a real lens"),
        ({"k2": -1e6}, "k2.*a real lens"),
        ({"k1": NAN}, "must be finite.*k1"),
        ({"k1": [1]}, "k1 is not a number"),
        ({"w": 0, "h": 0}, "w and h must be positive.*got 0 x 0"),
        ({"w": float("inf"), "h": float("inf")}, "w and h must be positive.*got inf"),
        ({"w": -WIDTH, "h": -HEIGHT, "fl_x": F}, "w and h must be positive"),
        ({"fl_x": 0.0}, "positive focal lengths, got fl_x = 0"),
        ({"fl_x": NAN, "fl_y": F}, "positive focal lengths, got fl_x = nan"),
        ({"cx": float("inf")}, "must be finite"),
    ],
)
def test_lenses_that_are_not_read_are_refused_by_name(tmp_path, fields, reason, place):
    if place == "file":
        write_dots(tmp_path, fields={**PINHOLE, **fields})
    else:
        write_dots(tmp_path, frames=[{}] * (VIEWS - 1) + [fields])
    with pytest.raises(UserError, match=f"frame {0 if place == 'file' else VIEWS - 1}: .*{reason}"):
        folders.read_scene_folder(tmp_path)


@pytest.mark.parametrize("angle", [0.0, -1.0, math.pi, NAN])
def test_fields_of_view_that_no_camera_has_are_refused(tmp_path, angle):
    write_dots(tmp_path, fields={"camera_angle_x": angle})
    with pytest.raises(UserError, match="camera_angle_x = .*below pi"):
        folders.read_scene_folder(tmp_path)


ANGLE = 2 * math.atan(WIDTH / 2 / F)
HALF = {"w": WIDTH // 2, "h": HEIGHT // 2}
OTHER = {"fl_x": 400.0, "fl_y": 500.0}
FRAMES = {
    "focal x": ({**PINHOLE, **OTHER}, {"fl_x": F}, (F, F, CX, CY)),
    "focal y": ({**PINHOLE, **OTHER}, {"fl_y": F}, (F, F, CX, CY)),
    "both": ({**PINHOLE, **OTHER}, {"fl_x": F, "fl_y": 80.0}, (F, 80.0, CX, CY)),
    "angle for focal": ({**PINHOLE, **OTHER}, {"camera_angle_x": ANGLE}, (F, F, CX, CY)),
    "focal for angles": (
        {"camera_angle_x": 1.0, "camera_angle_y": 2.0, "w": WIDTH, "h": HEIGHT},
        {"fl_x": F},
        (F, F, WIDTH / 2, HEIGHT / 2),
    ),
    "size and focal": (PINHOLE, {**HALF, "fl_x": F / 2}, (F, F, WIDTH / 2, HEIGHT / 2)),
    "size with an angle": (
        {**PINHOLE, "camera_angle_x": ANGLE},
        HALF,
        (F, F, WIDTH / 2, HEIGHT / 2),
    ),
    "same size": (PINHOLE, {"w": WIDTH, "h": HEIGHT}, (F, F, CX, CY)),
    "centre": (PINHOLE, {"cx": 40.0}, (F, F, 40.0, CY)),
    "only an angle in y": (
        {"camera_angle_y": 2 * math.atan(HEIGHT / 2 / F)},
        {},
        (F, F, WIDTH / 2, HEIGHT / 2),
    ),
}


@pytest.mark.parametrize("case", FRAMES)
def test_a_frame_s_lens_is_never_completed_by_another_s(tmp_path, case):
    top, own, (fx, fy, cx, cy) = FRAMES[case]
    scene = folders.read_scene_folder(write_dots(tmp_path, fields=top, frames=[own] * VIEWS))
    np.testing.assert_allclose(scene.K[0], [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], rtol=1e-5)


def test_a_size_of_its_own_needs_a_focal_length_of_its_own(tmp_path):
    write_dots(tmp_path, frames=[HALF] * VIEWS)
    with pytest.raises(UserError, match="no intrinsics; expected fl_x .*in the frame itself"):
        folders.read_scene_folder(tmp_path)


TOP = {**PINHOLE, "k1": 0.1, "k2": 0.4, "p1": 0.1}
MIXED = {
    "coefficient": (rational(k1=0.3), TOP, {"k1": 0.3}),
    "nothing of its own": (
        rational(k1=0.1, k2=0.4, p1=0.1),
        TOP,
        {"is_keyframe": True, "sharp": 3},
    ),
    "coefficient of zero": (rational(), TOP, {"k1": 0}),
    "model": (fisheye(k1=0.3), TOP, {"camera_model": "OPENCV_FISHEYE", "k1": 0.3}),
    "model without coefficients": (rational(), TOP, {"camera_model": "PINHOLE"}),
    "fisheye of the file": (
        fisheye(k1=0.3),
        {**PINHOLE, "k2": 0.4, "is_fisheye": True},
        {"k1": 0.3},
    ),
    "fisheye but for this frame": (
        rational(k1=0.3),
        {**PINHOLE, "k2": 0.4, "is_fisheye": True},
        {"is_fisheye": False, "k1": 0.3},
    ),
    "model of the file": (
        fisheye(k1=0.3),
        {**PINHOLE, "k2": 0.4, "camera_model": "OPENCV_FISHEYE"},
        {"k1": 0.3, "fl_x": F},
    ),
}


@pytest.mark.parametrize("case", MIXED)
def test_distortion_of_a_frame_replaces_all_of_the_file_s(tmp_path, case):
    project, top, own = MIXED[case]
    write_dots(tmp_path / "scene", project, top, [own] * VIEWS)
    scene = folders.read_scene_folder(tmp_path / "scene")
    assert_balls_where_projected(scene, POINTS.astype(np.float32), TOLERANCE)


def test_a_lens_of_the_file_that_is_not_read_stays_refused_with_a_frame_s_coefficients(tmp_path):
    write_dots(tmp_path, fields={**PINHOLE, "ftheta_p0": 0.1}, frames=[{"k1": 0.1}] * VIEWS)
    with pytest.raises(UserError, match="ftheta_p0"):
        folders.read_scene_folder(tmp_path)
