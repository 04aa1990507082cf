"""Damaged data sets are read as they were or refused by name: no crash, hang or foreign error."""

import collections
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from escherjax import cameras
from escherjax.data import images, loader, shards
from escherjax.data.loader_config import LoaderConfig
from escherjax.errors import UserError
from tests.helpers.patience import PATIENCE_SEC
from tests.helpers.shard_fuzz import BATCH

NUM_SCENES, VIEWS, SIZE = 8, 4, 48


@pytest.fixture
def work(tmp_path, rng):
    """A folder whose `whole` holds eight scenes in three shards, pictures of noise as JPEG."""
    scenes = []
    for number in range(NUM_SCENES):
        pictures = rng.integers(0, 256, (VIEWS, SIZE, SIZE, 3)).astype(np.uint8)
        polar, azimuth = rng.uniform(0.3, 2.8, (2, VIEWS))
        K = np.tile(cameras.intrinsics_from_fov(0.8, SIZE, SIZE), (VIEWS, 1, 1))
        encoded = [encode_jpeg(tmp_path / "view.jpg", picture) for picture in pictures]
        c2w = cameras.from_spherical(polar, azimuth, 2.0)
        scenes.append(shards.Scene(f"scene-{number}", "noise", encoded, c2w, K, SIZE, SIZE))
    shards.write_scenes(tmp_path / "whole", scenes, num_shards=3)
    return tmp_path


def encode_jpeg(path, picture):
    Image.fromarray(picture).save(path, quality=95)
    return path.read_bytes()


def fuzz(work, count):
    """Results of `count` mutations; a process that dies fails with the number that killed it."""
    with (work / "results").open("w+") as results:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.helpers.shard_fuzz", str(work), "0", str(count)],
            stdout=results,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_SEC,
        )
        results.seek(0)
        lines = [json.loads(line) for line in results]
    assert ran.returncode == 0, (lines[-1:], ran.stderr)
    found = [line for line in lines if len(line) > 2]
    assert [line["number"] for line in found] == list(range(count))
    return found


def check(found):
    outcomes = collections.Counter()
    for line in found:
        assert "foreign" not in line, line["mutation"] + "\n" + line["foreign"]
        in_shard = "array_record" in line["mutation"]
        if line["refused"]:
            assert not in_shard, line
            outcomes["refused"] += 1
            continue
        # Every record is counted by every reader, and none is read as something else.
        assert line["scenes"] == line["inspected"] == NUM_SCENES, line
        assert line["bad"] == line["loader_bad"] == line["inspect_bad"], line
        assert line["changed"] == 0, line
        outcomes["bad" if line["bad"] else "exact"] += 1
    return outcomes


def test_150_damaged_data_sets_are_exact_or_refused_by_name(work):
    outcomes = check(fuzz(work, 150))
    assert all(outcomes[kind] > 10 for kind in ("refused", "bad", "exact")), outcomes


@pytest.mark.parametrize(
    "name, found, damaged",
    [("features.json", '"string"', '"spring"'), ("dataset_info.json", "{DATASET}", "{DATASET{")],
)
def test_metadata_that_tfds_cannot_follow_is_refused(work, name, found, damaged):
    path = work / "whole" / name
    assert found in path.read_text()
    path.write_text(path.read_text().replace(found, damaged))
    with pytest.raises(UserError, match=f"{name}.* is damaged .*copy them again"):
        shards.open_shards(path.parent)


@pytest.mark.slow
def test_1500_damaged_data_sets_are_exact_or_refused_by_name(work):
    outcomes = check(fuzz(work, 1500))
    assert all(outcomes[kind] > 100 for kind in ("refused", "bad", "exact")), outcomes


def test_a_bit_flipped_inside_a_picture_is_always_found(work, rng):
    """JPEG has no checksum, but the shard has one for each record."""
    path = shards.shard_path(work / "whole", "train", 0, 3)
    whole = path.read_bytes()
    scene = shards.open_shards(work / "whole")[0]
    for _ in range(40):
        data = scene.images[int(rng.integers(VIEWS))]
        start = whole.index(data)
        content = bytearray(whole)
        content[start + int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        settings = LoaderConfig(SIZE, 1, 1, on_bad_record="skip", shuffle=False)
        batches = loader.make_loader(shards.open_shards(work / "whole"), settings, BATCH)
        next(batches)
        batches.close()
        (name, reason), *others = batches.bad_records
        assert name == "record 0" and not others
        assert path.name in reason and "cannot be read" in reason
    assert images.decode_image(scene.images[0], "view").shape == (SIZE, SIZE, 3)
