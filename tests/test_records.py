"""Scene records: what is written is what is read, and nothing broken passes."""

import dataclasses
import sys

import numpy as np
import pytest

from escherjax.data import shards as records
from escherjax.errors import UserError
from tests.helpers.scenes import assert_same_scene, make_scene


@pytest.fixture
def scenes():
    return [make_scene(f"class/öbject-{i}", views=2 + i, seed=i) for i in range(5)]


@pytest.fixture
def shards(tmp_path, scenes):
    records.write_scenes(tmp_path / "shards", scenes, num_shards=3)
    return tmp_path / "shards"


def test_scenes_are_read_as_they_were_written(shards, scenes):
    source = records.open_shards(shards)
    assert len(source) == 5
    for index in (4, 0, 2, 1, 3):
        assert_same_scene(source[index], scenes[index])


def test_tfds_reads_the_folder_without_tensorflow(shards, scenes):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(shards).as_data_source("train")
    assert len(source) == 5
    record = source[3]
    assert record["scene_id"].decode() == scenes[3].scene_id
    assert list(record["images"]) == list(scenes[3].images)
    np.testing.assert_array_equal(record["c2w"], scenes[3].c2w)
    np.testing.assert_array_equal(record["K"], scenes[3].K)
    assert (record["height"], record["width"]) == (8, 10)
    assert "tensorflow" not in sys.modules


def test_the_same_scenes_give_the_same_bytes(shards, scenes, tmp_path):
    records.write_scenes(tmp_path / "again", scenes, num_shards=3)
    names = sorted(path.name for path in shards.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert sum("array_record" in name for name in names) == 3
    for name in names:
        assert (shards / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_each_record_knows_its_shard(shards):
    source = records.open_shards(shards)  # of 1, 2 and 2 scenes
    numbers = [int(source.shard_of(index).split("-")[2]) for index in range(5)]
    assert numbers == [0, 1, 1, 2, 2]


def test_every_fault_of_a_scene_is_listed():
    scene = make_scene(views=9)
    scene.c2w[[1, 4], 0, 3] = np.nan
    scene.K[:, 0, 0] = -1
    kinds = [(fault.kind, fault.view) for fault in records.scene_faults(scene)]
    assert kinds == [("pose not finite", 1), ("pose not finite", 4)] + [
        ("bad intrinsics", view) for view in range(9)
    ]
    with pytest.raises(UserError, match="view 1 holds.*view 4 holds.*of view 0 must.*and 6 more"):
        records.validate_scene(scene)


def test_missing_shards_are_named(shards):
    (shards / "scenes-train.array_record-00001-of-00003").unlink()
    with pytest.raises(UserError, match="misses 1 of 3 .*scenes-train.array_record-00001-of-00003"):
        records.open_shards(shards)


def test_unfinished_folder_and_unknown_split_are_refused(shards):
    with pytest.raises(UserError, match="no split 'val'; it has train"):
        records.open_shards(shards, "val")
    (shards / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="not a whole data set"):
        records.open_shards(shards)


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_damaged_shard_is_an_error_that_says_so(tmp_path, scenes, damage):
    records.write_scenes(tmp_path / "shards", scenes)
    shard = tmp_path / "shards" / "scenes-train.array_record-00000-of-00001"
    data = bytearray(shard.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        place = data.index(scenes[2].images[0]) + 20
        data[place : place + 8] = b"\xff" * 8
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match="record 2 .* cannot be read"):
        records.open_shards(tmp_path / "shards")[2]


def test_failed_shard_leaves_nothing_under_its_name(tmp_path):
    def breaks():
        yield make_scene()
        raise KeyboardInterrupt

    path = records.shard_path(tmp_path, "train", 0, 1)
    with pytest.raises(KeyboardInterrupt):
        records.write_shard(path, breaks())
    assert not path.exists()


def with_pose(change):
    c2w = make_scene().c2w.copy()
    change(c2w)
    return {"c2w": c2w}


def mirror(c2w):
    c2w[1, :, 0] *= -1


def scale(c2w):
    c2w[1, :3, :3] *= 1.1


def spoil(c2w):
    c2w[1, 0, 3] = np.nan


@pytest.mark.parametrize(
    "changes, message",
    [
        (with_pose(mirror), "pose of view 1 is mirrored"),
        (with_pose(scale), "pose of view 1 is not rigid"),
        (with_pose(spoil), "pose of view 1 holds NaN"),
        ({"c2w": make_scene().c2w[:2]}, "3 pictures, poses"),
        ({"K": -make_scene().K}, "intrinsics of view 0"),
        ({"K": make_scene().K * np.array([1, np.nan, 1])[:, None, None]}, "intrinsics of view 1"),
        ({"images": [], "c2w": np.zeros((0, 4, 4)), "K": np.zeros((0, 3, 3))}, "no views"),
        ({"images": np.zeros((3, 8, 9, 4), np.uint8)}, "pictures must be uint8"),
        ({"height": 0}, "height 0"),
    ],
)
def test_impossible_scene_is_named_and_refused(changes, message):
    with pytest.raises(UserError, match=f"scene 'a/one'.*{message}"):
        records.validate_scene(dataclasses.replace(make_scene(), **changes))


def test_invalid_scene_is_never_written(tmp_path):
    bad = dataclasses.replace(make_scene(), **with_pose(mirror))
    with pytest.raises(UserError, match="mirrored"):
        records.write_scenes(tmp_path / "shards", [bad])
    with pytest.raises(UserError, match="not a whole data set"):
        records.open_shards(tmp_path / "shards")


def test_repeated_scene_id_is_refused(tmp_path):
    with pytest.raises(UserError, match="'a/one' comes twice"):
        records.write_scenes(tmp_path / "shards", [make_scene(), make_scene(seed=1)])


def test_existing_data_set_is_not_replaced(shards, scenes):
    with pytest.raises(UserError, match="holds a data set already"):
        records.write_scenes(shards, scenes)


@pytest.mark.parametrize("split", ["all", "Train", "a-b", "", "1st"])
def test_split_names_that_tfds_cannot_read_are_refused(tmp_path, scenes, split):
    with pytest.raises(UserError, match="must be lower-case letters"):
        records.write_scenes(tmp_path / "shards", scenes, split=split)
