"""Files of weights in every layout, and files that were damaged or made to do harm."""

import importlib.util
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from escherjax.errors import UserError
from escherjax.weights import names, reading
from escherjax.weights import tensors as tensor_files
from tests.helpers import tiny_encoder
from tests.helpers.tiny_encoder import read, write_config, write_shards, write_single

INDEX = "model.safetensors.index.json"
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def tensors():
    return tiny_encoder.random_tensors()


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def refusal(folder):
    with pytest.raises(UserError) as caught:
        read(folder)
    return str(caught.value)


# Layouts.


@pytest.mark.parametrize(
    "file_name",
    [
        "model.safetensors",
        "model.fp16.safetensors",
        "model.bf16.safetensors",
        "model.non_ema.safetensors",
        "pytorch_model.safetensors",
        "encoder.safetensors",
    ],
)
def test_single_files_are_read(tmp_path, tensors, file_name):
    write_single(tmp_path, tensors, file_name)
    assert_equal(read(tmp_path), tensors)


@pytest.mark.parametrize("index", [INDEX, "model.safetensors.index.fp16.json"])
def test_shards_are_read(tmp_path, tensors, index):
    write_shards(tmp_path, tensors, 3)
    (tmp_path / INDEX).rename(tmp_path / index)
    assert_equal(read(tmp_path), tensors)
    network = reading.read_component(tmp_path, "image_encoder")[0]
    assert (network.source, len(network.dtypes)) == (tmp_path / index, len(tensors))


def test_the_plain_name_wins_and_several_variants_are_refused(tmp_path, tensors):
    others = tiny_encoder.random_tensors(1)
    for variant in ("fp16", "non_ema"):
        write_single(tmp_path, others, f"model.{variant}.safetensors")
    message = refusal(tmp_path)
    assert "several files of weights, model.fp16.safetensors, model.non_ema.safetensors" in message
    assert "keep the one to use" in message
    write_single(tmp_path, tensors)
    assert_equal(read(tmp_path), tensors)
    write_shards(tmp_path, others)
    assert f"several files of weights, model.safetensors, {INDEX}" in refusal(tmp_path)


def test_the_hubs_cache_of_links_is_read(tmp_path, tensors):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/0123abc/image_encoder"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_shards(snapshot, tensors)
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(f"../../../blobs/{i}")
    assert_equal(read(snapshot), tensors)


def share(folder, tensors, mark=True):
    """A snapshot as huggingface_hub >= 1.32 keeps it: snapshot -> blobs -> blobs of the cache."""
    root, repository = folder, folder / "models--owner--name"
    snapshot = repository / "snapshots/0123abc/image_encoder"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (root / "blobs/ab").mkdir(parents=True)
    if mark:
        (root / "blobs/.huggingface-shared-blobs").write_text("1\n")
    write_shards(snapshot, tensors)
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(root / f"blobs/ab/{i}")
        (repository / f"blobs/{i}").symlink_to(f"../../blobs/ab/{i}")
        path.symlink_to(f"../../../blobs/{i}")
    return snapshot


def test_the_blobs_that_a_hubs_cache_shares_are_read(tmp_path, tensors):
    snapshot = share(tmp_path / "hub", tensors)
    assert_equal(read(snapshot), tensors)
    (tmp_path / "link").symlink_to(snapshot.parent)  # people link a snapshot to where they work
    assert_equal(read(tmp_path / "link/image_encoder"), tensors)
    (tmp_path / "cache").symlink_to(tmp_path / "hub")
    assert_equal(read(tmp_path / "cache" / snapshot.relative_to(tmp_path / "hub")), tensors)


@pytest.mark.parametrize("target", ["../..", "../../models--another--name/blobs"])
def test_links_from_a_hubs_cache_to_elsewhere_are_refused(tmp_path, tensors, target):
    snapshot = share(tmp_path / "hub", tensors)
    elsewhere = (snapshot.parent / "../../blobs" / target).resolve()
    elsewhere.mkdir(exist_ok=True, parents=True)
    blob = (snapshot / SHARD_2).readlink()
    shutil.copy(snapshot / SHARD_2, elsewhere / "stray")
    (snapshot / blob).unlink()
    (snapshot / blob).symlink_to(elsewhere / "stray")
    assert f"names {SHARD_2}, a link out of the folder" in refusal(snapshot)


def test_a_folder_of_blobs_that_is_no_hubs_store_is_not_followed(tmp_path, tensors):
    assert "a link out of the folder" in refusal(share(tmp_path / "hub", tensors, mark=False))


# Pickles.


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pickles_are_read_by_torch(tmp_path, tensors, dtype, zipped):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(t).to(getattr(torch, dtype)) for name, t in tensors.items()}
    write_config(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_equal(read(tmp_path), {name: t.float().numpy() for name, t in state.items()})
    write_single(tmp_path, tensors)
    path.write_bytes(b"never opened")
    assert_equal(read(tmp_path), tensors)


def test_values_from_a_pickle_do_not_change_with_its_file(tmp_path, tensors):
    torch = pytest.importorskip("torch")
    write_config(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, path)
    params = reading.read_component(tmp_path, "image_encoder")[1]
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_equal(names.torch_from_tree(params), tensors)


def test_sharded_pickles_are_read(tmp_path, tensors):
    torch = pytest.importorskip("torch")
    write_config(tmp_path)
    weight_map = {}
    for i in range(2):
        part = dict(list(tensors.items())[i::2])
        torch.save({n: torch.tensor(t) for n, t in part.items()}, tmp_path / f"part{i}.bin")
        weight_map |= dict.fromkeys(part, f"part{i}.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(read(tmp_path), tensors)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "part.safetensors")}))
    assert "expected a .bin file in its own folder" in refusal(tmp_path)


class Harmful:
    """Unpickled by Python itself, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    write_config(tmp_path)
    torch.save({"weight": Harmful(tmp_path / "made")}, tmp_path / "pytorch_model.bin")
    message = refusal(tmp_path)
    assert "pytorch_model.bin: PyTorch does not open it with weights_only=True" in message
    assert not (tmp_path / "made").exists()


def test_pickles_of_other_things_are_refused(tmp_path, tensors):
    torch = pytest.importorskip("torch")
    write_config(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save([1, 2], path)
    assert "must hold tensors by name, got a list" in refusal(tmp_path)
    torch.save({"step": 7, "state_dict": {}, "s": torch.eye(2).to_sparse(), 8: torch.eye(2)}, path)
    message = refusal(tmp_path)
    for found in ("8 is a Tensor", "step is a int", "state_dict is a dict", "s is a Tensor"):
        assert found in message
    huge = torch.zeros(1).expand(2**40)  # four bytes that claim to be four terabytes
    torch.save({**{n: torch.tensor(t) for n, t in tensors.items()}, "layernorm.bias": huge}, path)
    assert "tensor layernorm.bias is [1099511627776], expected [4]" in refusal(tmp_path)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:1000], b"\x80\x02."):
        path.write_bytes(content)
        assert "PyTorch does not open it" in refusal(tmp_path)


def test_without_torch_pickles_are_refused_with_the_reason(tmp_path, monkeypatch):
    write_config(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refusal(tmp_path)
    assert "pytorch_model.bin: is a pickle, which could run any code" in message
    assert "pip install torch" in message


def test_torch_that_is_not_safe_is_not_used(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    assert "PyTorch 2.5.1+cpu does not open it safely" in tensor_files.why_no_pickles()


@pytest.mark.parametrize("file_name", ["weights.ckpt", "weights.pt", "training_args.bin"])
def test_pickles_of_other_names_are_not_opened(tmp_path, file_name):
    write_config(tmp_path)
    (tmp_path / file_name).write_bytes(b"never opened")
    message = refusal(tmp_path)
    assert f"not found, only {file_name}, which is not opened" in message
    assert "Name it pytorch_model.bin" in message


def test_metadata_of_null_is_read_as_none(tmp_path, tensors):
    write_single(tmp_path, tensors, "model.safetensors")
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = {**json.loads(content[8 : 8 + length]), "__metadata__": None}
    write_raw(path, header, content[8 + length :])
    assert_equal(read(tmp_path), tensors)


# Damaged safetensors files.


def write_raw(path, header, data=b"", length=None):
    """A safetensors file of any header text and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)


def entry(begin, end, dtype="F32", shape=None):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "no JSON": (b"{", b"", "invalid JSON in header"),
    "no object": (b"[1]", b"", "is not a whole safetensors file"),
    "no text": (b'{"\xff": 1}', b"", "invalid UTF-8 in header"),
    "deep": (b'{"a": ' + b"[" * 100_000, b"", "invalid JSON in header"),
    "NaN": (b'{"a": NaN}', b"", "invalid JSON in header"),
    "repeated": (
        b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
        "it repeats the names a",
    ),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "expected a string"),
    "no entry": ({"a": 1}, b"", "invalid JSON in header"),
    "extra": ({"a": {**entry(0, 4), "x": 1}}, bytes(4), "tensor a must have dtype, shape and"),
    "type": ({"a": entry(0, 4, 7)}, bytes(4), "invalid JSON in header"),
    "negative": ({"a": entry(0, 4, shape=[-1])}, bytes(4), "integer `-1`"),
    "fraction": ({"a": entry(0, 4, shape=[1.0])}, bytes(4), "floating point `1.0`"),
    "bool": ({"a": entry(0, 4, shape=[True])}, bytes(4), "boolean `true`"),
    "axes": ({"a": entry(0, 4, shape=[1] * 9)}, bytes(4), "tensor a [1, 1, 1, 1, 1, 1, 1, 1, 1]"),
    "huge": ({"a": entry(0, 4, shape=[2**62] * 8)}, bytes(4), "overflow computing buffer size"),
    "backwards": ({"a": entry(4, 0, shape=[1])}, bytes(4), "invalid offset for tensor `a`"),
    "three": (
        {"a": {**entry(0, 4), "data_offsets": [0, 4, 8]}},
        bytes(4),
        "invalid JSON in header",
    ),
    "size": ({"a": entry(0, 8, shape=[1])}, bytes(8), "invalid shape, data type, or offset"),
    "overlap": (
        {"a": entry(0, 8), "b": entry(4, 12)},
        bytes(12),
        "invalid offset for tensor `b`",
    ),
    "gap": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "invalid offset for tensor `b`"),
    "short": ({"a": entry(0, 8)}, bytes(7), "file not fully covered"),
    "long": ({"a": entry(0, 8)}, bytes(9), "file not fully covered"),
    "unprintable": ({"a\x1b[2J": entry(4, 8)}, bytes(8), "invalid offset for tensor `a\\x1b[2J`"),
    "long name": ({"a" * 10_000: entry(4, 8)}, bytes(8), "aaa..."),
}


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_headers_are_refused(tmp_path, case):
    header, data, message = HEADERS[case]
    write_config(tmp_path)
    path = tmp_path / "model.safetensors"
    write_raw(path, header, data)
    assert message in refusal(tmp_path)
    assert f"{path}: " in refusal(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63, 2**64 - 1])
def test_a_wrong_length_of_the_header_is_refused(tmp_path, tensors, length):
    write_single(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "is not a whole safetensors file" in refusal(tmp_path)


def test_a_huge_header_is_refused_unread(tmp_path):
    write_config(tmp_path)
    path = tmp_path / "model.safetensors"
    write_raw(path, b"{}", length=200_000_000)
    os.truncate(path, 300_000_000)  # holes take no room on the disk
    assert "header too large" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "header too small"),
        (b"PK\x03\x04" + bytes(100), "it is a pickle under another name"),
        (b"\x80\x02}q\x00(X\x01" + bytes(100), "it is a pickle under another name"),
        (b"\x80\x04\0\0\0\0\0\0{" + bytes(100), "invalid header length"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
    ],
)
def test_other_files_under_the_name_are_recognised(tmp_path, content, reason):
    write_config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert reason in refusal(tmp_path)


def test_what_is_no_file_is_refused(tmp_path, tensors):
    write_config(tmp_path)
    path = tmp_path / "model.safetensors"
    path.mkdir()
    assert f"{path}: is a directory; expected a file" in refusal(tmp_path)
    path.rmdir()
    os.mkfifo(path)  # opening it would wait for ever
    assert f"{path}: not found" in refusal(tmp_path)
    path.unlink()
    write_single(tmp_path, tensors)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    assert f"{tmp_path / 'config.json'}: is not usable JSON (not a file)" in refusal(tmp_path)


def test_repeated_fields_of_a_config_are_refused(tmp_path, tensors):
    write_single(tmp_path, tensors)
    (tmp_path / "config.json").write_text('{"depths": [1], "depths": [2]}')
    assert "it repeats the names depths" in refusal(tmp_path)


# Shards that do not keep to their index.


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/model.safetensors",
        "..\\m.safetensors",
        "C:\\m.safetensors",
        "model.bin",
        "",
        ".",
        "x\x00.safetensors",
        "é" * 200 + ".safetensors",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_shards_elsewhere_are_refused(tmp_path, tensors, shard):
    folder = tmp_path / "encoder"
    (folder / "a").mkdir(parents=True)
    for elsewhere in (tmp_path, folder / "a"):
        save_file(tensors, elsewhere / "model.safetensors")
    index = write_shards(folder, tensors)
    index["weight_map"]["layernorm.bias"] = shard
    (folder / INDEX).write_text(json.dumps(index))
    assert "expected a .safetensors file in its own folder" in refusal(folder)


def test_links_out_of_the_folder_are_refused(tmp_path, tensors):
    folder = tmp_path / "encoder"
    folder.mkdir()
    write_shards(folder, tensors)
    shutil.move(folder / SHARD_2, tmp_path / SHARD_2)
    (folder / SHARD_2).symlink_to(tmp_path / SHARD_2)
    assert f"names {SHARD_2}, a link out of the folder" in refusal(folder)


def test_missing_shards_and_index_are_named(tmp_path, tensors):
    write_shards(tmp_path, tensors)
    (tmp_path / SHARD_1).unlink()
    (tmp_path / SHARD_2).unlink()
    message = refusal(tmp_path)
    for shard in (SHARD_1, SHARD_2):
        assert f"{tmp_path / INDEX}: names {shard}, which is not found or not a file" in message
    write_shards(tmp_path, tensors)
    (tmp_path / INDEX).unlink()
    assert f"nor the .index.json that lists what is in {SHARD_1}, {SHARD_2}" in refusal(tmp_path)


def test_shards_must_hold_what_the_index_says(tmp_path, tensors):
    index = write_shards(tmp_path, tensors)
    first, second = list(tensors)[:2]
    weight_map = index["weight_map"]
    weight_map[first], weight_map["absent"] = SHARD_2, SHARD_1
    del weight_map[second]
    (tmp_path / INDEX).write_text(json.dumps(index))
    message = refusal(tmp_path)
    for fault in (
        f"{tmp_path / SHARD_1}: tensor {first} is stored here, but {INDEX} names {SHARD_2}",
        f"{tmp_path / SHARD_2}: tensor {second} is stored here, but {INDEX} does not list it",
        f"{tmp_path / INDEX}: tensor absent is listed but not in {SHARD_1}",
    ):
        assert fault in message


def test_a_tensor_in_two_shards_is_refused(tmp_path, tensors):
    write_shards(tmp_path, tensors)
    save_file(tensors, tmp_path / SHARD_2)
    first = next(iter(tensors))
    assert f"tensor {first} is also in {SHARD_1}" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_unusable_indices_are_refused(tmp_path, tensors, content):
    write_shards(tmp_path, tensors)
    (tmp_path / INDEX).write_text(content)
    assert f"{tmp_path / INDEX}: " in refusal(tmp_path)


def test_a_tensor_listed_twice_in_an_index_is_refused(tmp_path, tensors):
    write_shards(tmp_path, tensors)
    text = (tmp_path / INDEX).read_text()
    again = f'{{"layernorm.bias": "{SHARD_1}", '
    (tmp_path / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {again}'[:-1]))
    assert "it repeats the names layernorm.bias" in refusal(tmp_path)


def test_a_file_cut_short_while_it_is_read_is_refused(tmp_path, tensors):
    write_single(tmp_path, tensors)
    cut = []

    def place(array):
        if not cut:
            os.truncate(tmp_path / "model.safetensors", 100)
            cut.append(True)
        return array

    with pytest.raises(UserError, match="cannot be read .*failed to fill whole buffer"):
        reading.read_component(tmp_path, "image_encoder", place)
