"""Shards far away: the same records as from a local folder, in one request each."""

import concurrent.futures
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from escherjax import files
from escherjax.data import loader, remote, shards
from escherjax.errors import UserError
from tests.helpers.patience import PATIENCE_SEC
from tests.helpers.range_server import serve
from tests.helpers.scenes import assert_same_scene, make_scene

BLOCK = remote.POSTSCRIPT_SIZE


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(f"object-{i}", views=2 + i % 3, seed=i) for i in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes):
    root = tmp_path_factory.mktemp("served")
    shards.write_scenes(root / "bucket" / "shards", scenes, num_shards=3)
    return root


@pytest.fixture
def server(folder):
    with serve(folder) as running:
        yield running


def write_array_record(path, contents, options="group_size:1,uncompressed"):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for content in contents:
        writer.write(content)
    writer.close()


def read_all(path):
    """Every record of a file by its byte ranges alone."""
    data = path.read_bytes()
    begin = remote.footer_offset(data[-BLOCK:])
    bounds = remote.chunk_bounds(data[begin:], begin).tolist()
    return [remote.read_record(data[a:b], a) for a, b in zip(bounds, bounds[1:], strict=False)]


@pytest.mark.parametrize("seed", range(20))
def test_records_are_those_the_library_wrote_wherever_block_headers_fall(tmp_path, seed):
    rng = np.random.default_rng(seed)
    sizes = [0, 1, 127, 128, BLOCK, 1_000_000]
    sizes += rng.integers(BLOCK - 150, BLOCK + 150, 6).tolist()  # a header in every part of a chunk
    sizes += (BLOCK * rng.integers(1, 5, 6) - rng.integers(0, 120, 6)).tolist()
    sizes += rng.integers(0, 300, 4).tolist()
    contents = [rng.bytes(size) for size in rng.permutation(sizes)]
    write_array_record(tmp_path / "file", contents)
    assert read_all(tmp_path / "file") == contents


def test_a_footer_longer_than_blocks_is_read(tmp_path):
    contents = [b"%d" % number for number in range(20_000)]
    write_array_record(tmp_path / "file", contents)
    assert read_all(tmp_path / "file") == contents


@pytest.mark.parametrize(
    "options, message",
    [
        ("group_size:2,uncompressed", "grouped"),
        ("group_size:1,zstd", "compressed"),
        ("group_size:1,uncompressed,transpose", "no chunk of records"),
    ],
)
def test_other_layouts_are_named(tmp_path, options, message):
    write_array_record(tmp_path / "file", [b"x" * 1000] * 4, options)
    with pytest.raises(remote.LayoutError, match=message):
        read_all(tmp_path / "file")


def test_damaged_files_raise_layout_errors_alone(tmp_path):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(50) for _ in range(10)]
    write_array_record(tmp_path / "file", contents)
    whole = (tmp_path / "file").read_bytes()
    # Where content is: the rest of the two blocks is padding that nothing reads.
    places = np.flatnonzero(np.frombuffer(whole, np.uint8))
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[rng.choice(places)] ^= 1 << rng.integers(8)
        stop = rng.integers(len(data)) if rng.random() < 0.3 else len(data)
        (tmp_path / "file").write_bytes(data[:stop])
        try:
            read_all(tmp_path / "file")
        except remote.LayoutError:
            refused += 1
    assert refused > 100  # all that are cut, and more; a flipped bit of a record passes


@pytest.mark.parametrize("place", ["http", "file"])
def test_scenes_are_the_same_as_from_the_folder(server, folder, scenes, place):
    address = {"http": f"{server.url}/bucket/shards", "file": f"file://{folder}/bucket/shards/"}
    source = shards.open_shards(address[place])
    assert len(source) == 7
    order = [4, 0, 6, 1, 3, 2, 5] * 4
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.__getitem__, order))
    for index, scene in zip(order, read, strict=True):
        assert_same_scene(scene, scenes[index])


def test_a_record_costs_one_request_of_its_size(server, folder):
    source = shards.open_shards(f"{server.url}/bucket/shards")
    server.requests.clear()
    scene = source[4]
    [(path, byte_range)] = server.requests
    assert path.endswith(source.shard_of(4))
    first, last = (int(number) for number in byte_range.removeprefix("bytes=").split("-"))
    size = sum(map(len, scene.images))
    assert size < last - first < size + 1000  # poses, names, headers


def test_batches_are_the_same_as_from_the_folder(server, folder):
    config = loader.LoaderConfig(resolution=8, num_references=1, num_targets=1)
    address = f"{server.url}/bucket/shards"
    near = loader.make_loader(shards.open_shards(folder / "bucket" / "shards"), config, 4)
    far = loader.make_loader(shards.open_shards(address), config, 4)
    for _ in range(3):
        a, b = next(near), next(far)
        assert a.scene_ids.tolist() == b.scene_ids.tolist()
        np.testing.assert_array_equal(a.ref_images, b.ref_images)
        np.testing.assert_array_equal(a.target_c2w, b.target_c2w)
    near.close()
    far.close()


def test_inspect_reads_a_bucket_of_google_cloud_storage(server, tmp_path):
    environment = os.environ | {
        "TENSORSTORE_GCS_HTTP_URL": server.url,
        "HOME": str(tmp_path),  # no credentials
        "GCE_METADATA_ROOT": server.url.removeprefix("http://"),
    }
    environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)

    def inspect(address):
        command = [sys.executable, "-m", "data_prep.inspect", address, "--scenes", "0"]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SEC
        )

    done = inspect("gs://bucket/shards")
    assert done.returncode == 0, done.stderr
    assert "7 scenes" in done.stdout, done.stdout
    assert any("/b/bucket/o/shards/scenes-train" in path for path, _ in server.requests)
    refused = inspect("gs://private/shards")
    assert refused.returncode == 2
    assert "gs://private/shards" in refused.stderr and "no access for you" in refused.stderr


def test_a_failure_that_passes_is_tried_again(server, scenes):
    source = shards.open_shards(f"{server.url}/bucket/shards")
    server.failures.append(503)
    assert_same_scene(source[2], scenes[2])
    assert not server.failures


@pytest.mark.parametrize(
    "address, message",
    [
        ("{url}/bucket/nothing", "nothing is not a whole data set: it has no dataset_info.json"),
        ("{url}/private/shards", "private/shards/dataset_info.json cannot be read: PERMISSION"),
        ("ftp://host/shards", "ftp://host/shards cannot be opened .*gs://BUCKET"),
    ],
)
def test_addresses_that_cannot_be_read_are_named(server, address, message):
    with pytest.raises(UserError, match=message):
        shards.open_shards(address.format(url=server.url))


def test_every_shard_that_is_missing_or_damaged_is_named(server, folder, tmp_path):
    spoiled = folder / "bucket" / "spoiled"
    shutil.copytree(folder / "bucket" / "shards", spoiled)
    missing, cut, short = sorted(spoiled.glob("*.array_record-*"))
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-1000])
    write_array_record(short, [b"one"])
    with pytest.raises(UserError) as error:
        shards.open_shards(f"{server.url}/bucket/spoiled")
    text = str(error.value)
    assert f"3 of 3 shards of {server.url}/bucket/spoiled" in text
    assert f"{missing.name}: it is missing" in text
    assert f"{cut.name}: it has no ArrayRecord postscript" in text
    assert f"{short.name}: it has 1 records; 3 are announced" in text


def test_a_record_that_is_damaged_is_an_error_with_its_shard(server, folder):
    spoiled = folder / "bucket" / "damaged"
    shutil.copytree(folder / "bucket" / "shards", spoiled)
    source = shards.open_shards(f"{server.url}/bucket/damaged")
    shard = spoiled / source.shard_of(3)
    data = bytearray(shard.read_bytes())
    data[64 + 24] ^= 1  # type of the first chunk, behind the file's signature of 64 bytes
    shard.write_bytes(data)
    with pytest.raises(UserError, match="record 2 .*no chunk of records.*00001-of-00003"):
        source[2]
    shard.unlink()
    with pytest.raises(UserError, match="is gone"):
        source[3]


@pytest.mark.parametrize("path", ["shards", "/data/shards", "a:b", "c:/shards"])
def test_paths_of_this_machine_are_no_addresses(path):
    assert not files.is_remote(path)
