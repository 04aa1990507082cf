"""Protocol on RTMV: which frames, which colours, which resize."""

import json

import numpy as np
import pytest
from PIL import Image

from escherjax import cameras
from escherjax.data.formats import rtmv
from escherjax.errors import UserError
from escherjax.evaluate.protocol import make_protocol
from tests.helpers.rtmv_folders import HEIGHT, WIDTH, write_exr, write_scene

SIZE = 24
# Linear colours over all of a frame: 0.5 is cut to 127; 1.2 * 255 = 306 wraps around to 50.
LINEAR = np.concatenate(
    [np.full((HEIGHT, WIDTH // 2, 3), value, np.float32) for value in (0.5, 1.2)], axis=1
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("google_scanned")
    folder = write_scene(root / "00007", views=22)
    write_exr(folder / "00012.exr", {"RGB": LINEAR})
    return root


@pytest.mark.parametrize("mode", ["faithful", "corrected"])
def test_first_frames_are_given_twenty_made_and_ten_scored(scenes, mode):
    protocol = make_protocol("rtmv", scenes, mode)
    case = protocol.read("00007", 3, SIZE, "6dof")
    assert case.target_c2w.shape == (20, 4, 4) and case.truth.shape == (20, SIZE, SIZE, 3)
    assert case.scored.tolist() == list(range(10, 20))
    np.testing.assert_array_equal(case.reference_c2w, case.target_c2w[:3])
    np.testing.assert_array_equal(case.reference_images, case.truth[:3])
    # No scale: the cameras stand where the files say.
    stored = [
        json.loads((scenes / "00007" / f"{view:05d}.json").read_text())["camera_data"]["cam2world"]
        for view in range(20)
    ]
    np.testing.assert_allclose(case.target_c2w[:, :3, 3], np.array(stored)[:, 3, :3], atol=1e-6)
    with pytest.raises(UserError, match="at most 10, .* got 11"):
        protocol.read("00007", 11, SIZE, "6dof")


def test_faithful_truth_wraps_around_and_is_resized_as_the_input_is(scenes):
    case = make_protocol("rtmv", scenes, "faithful").read("00007", 1, SIZE, "6dof")
    flat = np.where(LINEAR == 0.5, 127, 50).astype(np.uint8)
    square = flat[:, (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2]
    bilinear = Image.fromarray(square).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(case.truth[12], np.asarray(bilinear))


def test_corrected_truth_is_clipped_and_follows_srgb(scenes):
    case = make_protocol("rtmv", scenes, "corrected").read("00007", 1, SIZE, "6dof")
    assert case.truth[12, :, 0].tolist() == [[188] * 3] * SIZE  # 255 * sRGB(0.5) = 187.5
    assert case.truth[12, :, -1].tolist() == [[255] * 3] * SIZE


def test_cameras_are_the_originals(golden_dir, tmp_path):
    folder = write_scene(tmp_path / "one", views=20)
    golden = np.load(golden_dir / "conversions-6dof.npz")
    for view, matrix in enumerate(golden["rtmv/cam2world_json"]):
        path = folder / f"{view:05d}.json"
        content = json.loads(path.read_text())
        content["camera_data"]["cam2world"] = matrix.tolist()
        path.write_text(json.dumps(content))
    case = make_protocol("rtmv", tmp_path).read("one", 1, SIZE, "6dof")
    w2c = np.linalg.inv(cameras.opengl_from_opencv(case.target_c2w.astype(np.float64)))
    expected = golden["rtmv/pose_6dof"]
    np.testing.assert_allclose(w2c[: len(expected)], expected, atol=1e-6)


def test_missing_frames_are_named(tmp_path):
    folder = write_scene(tmp_path / "short", views=19)
    with pytest.raises(UserError, match="scene 'short': the first frames.* must be 0 to 19"):
        make_protocol("rtmv", tmp_path).read("short", 1, SIZE, "6dof")
    (folder / "00004.json").unlink()
    with pytest.raises(UserError, match=r"00004\.json not found"):
        make_protocol("rtmv", tmp_path).read("short", 1, SIZE, "6dof")
    assert [name for name, _ in rtmv.find_scenes(tmp_path)] == ["short"]
