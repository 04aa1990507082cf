"""Protocol on NeRF-Synthetic: index lists, scale of poses, field of view."""

import json

import numpy as np
import pytest
from PIL import Image

from escherjax import cameras
from escherjax.errors import UserError
from escherjax.evaluate.protocol import make_protocol

SIDE, ANGLE = 40, 0.6911112070083618
NUM_TRAIN, NUM_TEST = 12, 4


def positions(count, seed, radius):
    draws = np.random.default_rng(seed).normal(size=(count, 3))
    return radius * draws / np.linalg.norm(draws, axis=-1, keepdims=True)


def write_split(folder, split, centers):
    """Pictures that hold one grey on a transparent frame, 5 times the number of the frame."""
    (folder / split).mkdir(parents=True)
    frames = []
    for number, center in enumerate(centers):
        picture = np.zeros((SIDE, SIDE, 4), np.uint8)
        picture[10:30, 10:30] = (5 * number, 5 * number, 5 * number, 255)
        Image.fromarray(picture).save(folder / split / f"r_{number}.png")
        # OpenGL axes by hand: back is away from the origin.
        back = center / np.linalg.norm(center)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(back, right), back, center], axis=-1)
        frames.append({"file_path": f"./{split}/r_{number}", "transform_matrix": pose.tolist()})
    content = {"camera_angle_x": ANGLE, "frames": frames}
    (folder / f"transforms_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """One training camera, never given, stands farther than others; a test camera farther yet."""
    root = tmp_path_factory.mktemp("nerf")
    training, test = positions(NUM_TRAIN, 0, 4.0), positions(NUM_TEST, 1, 4.0)
    training[11] *= 1.25
    test[2] *= 1.5
    for name in ("drums", "chair"):
        write_split(root / name, "train", training)
        write_split(root / name, "test", test)
        (root / "NeRF_idx" / name).mkdir(parents=True)
        for count, index in ((1, [9]), (2, [7, 2]), (3, [7, 2, 4])):
            np.save(root / "NeRF_idx" / name / f"train_N{count}M20_random.npy", np.array(index))
    return root


def open_nerf(root, mode="faithful", counts=(1, 2, 3), **options):
    return make_protocol("nerf", root, mode, reference_counts=counts, **options)


def test_references_are_the_frames_of_the_list_in_its_order_and_all_test_frames_count(scenes):
    protocol = open_nerf(scenes)
    assert protocol.scene_ids() == ["chair", "drums"]
    for count, frames in ((1, [9]), (3, [7, 2, 4])):
        case = protocol.read("chair", count, SIDE, "6dof")
        assert (case.reference_images[:, 20, 20, 0] / 5).tolist() == frames
        assert (case.reference_images[:, 0, 0] == 255).all()
        assert (case.truth[:, 20, 20, 0] / 5).tolist() == [0, 1, 2, 3]
        assert case.scored.tolist() == [0, 1, 2, 3]
        directions = case.reference_c2w[:, :3, 3]
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        expected = positions(NUM_TRAIN, 0, 1.0)[frames]
        np.testing.assert_allclose(directions, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "cape", "reference", "targets"),
    [
        # 1.5 / 5, by the farthest training camera, given or not; test cameras have no say.
        ("faithful", "6dof", 1.2, [1.2, 1.2, 1.8, 1.2]),
        ("faithful", "4dof", 4.0, [4.0, 4.0, 6.0, 4.0]),  # the encoding clips them to 2.2
        ("faithful", "4dof_paper", 4.0, [4.0, 4.0, 6.0, 4.0]),
        ("corrected", "6dof", 1.2, [1.2, 1.2, 1.8, 1.2]),
        ("corrected", "4dof", 1.2, [1.2, 1.2, 1.8, 1.2]),
    ],
)
def test_poses_are_scaled_by_the_training_cameras_and_kept_for_4dof(
    scenes, mode, cape, reference, targets
):
    case = open_nerf(scenes, mode).read("drums", 3, SIDE, cape)
    for c2w, expected in ((case.reference_c2w, reference), (case.target_c2w, targets)):
        np.testing.assert_allclose(np.linalg.norm(c2w[:, :3, 3], axis=-1), expected, rtol=1e-6)


def read_published(folder, stored, max_radius, cape):
    """The case whose references are these cameras, one more training camera being the farthest."""
    count = len(stored)
    farthest = np.eye(4)
    farthest[2, 3] = max_radius
    write_split(folder / "one", "train", positions(count + 1, 0, 4.0))
    write_split(folder / "one", "test", positions(1, 0, 4.0))
    path = folder / "one" / "transforms_train.json"
    content = json.loads(path.read_text())
    for frame, pose in zip(content["frames"], [*stored, farthest], strict=True):
        frame["transform_matrix"] = pose.tolist()
    path.write_text(json.dumps(content))
    (folder / "lists" / "one").mkdir(parents=True)
    np.save(folder / "lists" / "one" / f"train_N{count}M20_random.npy", np.arange(count))
    protocol = open_nerf(folder, counts=[count], index_path=folder / "lists")
    return protocol.read("one", count, SIDE, cape)


def test_6dof_cameras_are_the_originals_but_for_a_turn_of_the_world(golden_dir, tmp_path):
    golden = np.load(golden_dir / "conversions-6dof.npz")
    case = read_published(tmp_path, golden["nerf/c2w_blender"], golden["nerf/max_radius"], "6dof")
    w2c = np.linalg.inv(cameras.opengl_from_opencv(case.reference_c2w.astype(np.float64)))
    half_turn_about_x = np.diag([1.0, -1.0, -1.0, 1.0])
    # Cases are float32.
    np.testing.assert_allclose(w2c @ half_turn_about_x, golden["nerf/pose_6dof"], atol=2e-6)


def test_4dof_cameras_are_the_originals(golden_dir, tmp_path):
    golden = np.load(golden_dir / "conversions-4dof.npz")
    case = read_published(tmp_path, golden["nerf/c2w_blender"], 5.0, "4dof")
    polar, azimuth, radius = cameras.to_spherical(case.reference_c2w)
    expected = golden["nerf/pose_4dof"]
    np.testing.assert_allclose(np.stack([polar, azimuth], -1), expected[:, :2], atol=2e-6)
    clipped = expected[:, 2] == np.pi
    assert clipped.any() and (radius[clipped] > 2.2).all() and (radius[~clipped] <= 2.2).all()


def test_corrected_pads_to_the_training_field_of_view(scenes):
    faithful, corrected = (open_nerf(scenes, mode) for mode in ("faithful", "corrected"))
    case = faithful.read("chair", 3, 80, "6dof")
    assert ((case.truth[0] < 128).any(-1).sum(0) > 0).sum() == 40  # half of the width
    case = corrected.read("chair", 3, 80, "6dof")
    dark = (case.truth[0] < 128).any(-1)
    # f = 35 / 32 of the side in place of 1.389: 20 of 40 pixels become 31.5 of 80.
    expected = 40 * (35 / 32) / (0.5 / np.tan(ANGLE / 2))
    np.testing.assert_allclose(case.target_K[:, 0, 0], 80 * 35 / 32, rtol=1e-6)  # float32
    assert abs(np.sqrt(dark.sum()) - expected) < 1
    np.testing.assert_array_equal(case.reference_images[0, 0], np.full((80, 3), 255))


def test_published_lists_are_prefixes_of_one_order_but_for_one_reference(data_dir):
    for scene in sorted((data_dir / "nerf_idx").iterdir()):
        lists = {
            count: np.load(scene / f"train_N{count}M20_random.npy").tolist()
            for count in (1, 2, 3, 5, 10, 20, 50, 100)
        }
        for count in (2, 3, 5, 10, 20, 50):
            assert lists[count] == lists[100][:count]
        assert sorted(lists[100]) == list(range(100))
        assert (lists[1] == lists[100][:1]) == (scene.name == "hotdog")  # one in eight, by chance


def test_real_scene_with_lists_of_ones_own(data_dir, tmp_path):
    """Lego, of which only 20 training frames are here: the list names frames of that file."""
    source = data_dir / "nerf_synthetic_lego"
    folder = tmp_path / "lego"
    folder.mkdir()
    (folder / "train").symlink_to(source / "train")
    content = (source / "transforms_train.json").read_text()
    for split in ("train", "test"):
        (folder / f"transforms_{split}.json").write_text(content)
    protocol = open_nerf(tmp_path, counts=[3], index_path=data_dir / "nerf_idx")
    with pytest.raises(UserError, match="names frames 37 to 79, .* has 20 frames"):
        protocol.read("lego", 3, 32, "6dof")
    (tmp_path / "NeRF_idx" / "lego").mkdir(parents=True)
    np.save(tmp_path / "NeRF_idx" / "lego" / "train_N2M20_random.npy", np.array([4, 11]))
    case = open_nerf(tmp_path, "corrected", [2]).read("lego", 2, 32, "4dof")
    np.testing.assert_array_equal(case.truth[[4, 11]], case.reference_images)
    radii = np.linalg.norm(case.target_c2w[:, :3, 3], axis=-1)
    np.testing.assert_allclose(radii, 1.5, rtol=1e-4)  # lego's cameras stand on one sphere


def test_missing_and_broken_lists_and_splits_are_named(scenes, tmp_path):
    with pytest.raises(UserError, match="no list .* for N = 5, 100 of any scene"):
        open_nerf(scenes, counts=(1, 5, 100))
    with pytest.raises(UserError, match="no index lists in .*nowhere; name the folder"):
        open_nerf(scenes, index_path=scenes / "nowhere")
    lists = tmp_path / "lists" / "drums"
    lists.mkdir(parents=True)
    for values, words in (
        ([1, 12], "names frames 1 to 12, but transforms_train.json has 12 frames"),
        ([3, 3], "must hold 2 different integers"),
        ([1.0, 2.0], "got float64"),
        ([1, 2, 3], "must hold 2 different integers"),
    ):
        np.save(lists / "train_N2M20_random.npy", np.array(values))
        with pytest.raises(UserError, match=words):
            open_nerf(scenes, counts=[2], index_path=lists.parent).read("drums", 2, SIDE, "6dof")
    write_split(tmp_path / "data" / "drums", "train", positions(2, 0, 4.0))
    with pytest.raises(UserError, match="'drums'.*transforms_test.json is missing"):
        protocol = open_nerf(tmp_path / "data", index_path=scenes / "NeRF_idx")
        protocol.read("drums", 1, SIDE, "6dof")


def test_scenes_and_sizes_have_ground_truth_of_their_own(scenes, tmp_path):
    other = tmp_path / "mic"
    write_split(other, "train", positions(NUM_TRAIN, 0, 4.0))
    write_split(other, "test", positions(2, 1, 4.0))
    write_split(tmp_path / "ship", "train", positions(NUM_TRAIN, 0, 4.0))
    write_split(tmp_path / "ship", "test", positions(3, 1, 4.0))
    for name in ("mic", "ship"):
        (tmp_path / "lists" / name).mkdir(parents=True)
        np.save(tmp_path / "lists" / name / "train_N1M20_random.npy", np.array([0]))
    protocol = open_nerf(tmp_path, counts=(1,), index_path=tmp_path / "lists")
    shapes = [
        protocol.read(name, 1, size, "6dof").truth.shape
        for name, size in (("mic", 16), ("ship", 16), ("ship", 8), ("mic", 16))
    ]
    assert shapes == [(2, 16, 16, 3), (3, 16, 16, 3), (3, 8, 8, 3), (2, 16, 16, 3)]
