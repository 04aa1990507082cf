"""Thousands of small damages to a folder of weights: it is read exactly, or refused."""

import json

import numpy as np
import pytest

from escherjax.errors import UserError
from escherjax.weights import folder_configs, names, reading, strict_json
from tests.helpers import tiny_encoder

NUM_MUTATIONS = 1000  # of each kind of file
# Numbers and texts that break readers: limits of integer types, other types, other places.
VALUES = [
    0, 1, -1, 2, 3, 7, 127, 2**16, 2**31, 2**53, 2**63, 2**64, 10**400, 0.5, -0.0, 1e300, True,
    None, "", "F64", "BF16", "F16", "\x00", "../x", "/", [], {}, [[]], [0], [4], [1, 2], [2**40],
]  # fmt: skip
TEXTS = [b"Infinity", b"-", b"[" * 5000, b'{"', b"1e999", b"\xff", b"\\ud800", b"", b"{}", b"null"]


def flip_bits(content, rng):
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return bytes(content)


def cut(content, rng):
    return content[: rng.integers(len(content))]


def splice(content, rng):
    """Some bytes are replaced, doubled, or left out."""
    begin, end = sorted(rng.integers(len(content) + 1, size=2))
    middle = [TEXTS[rng.integers(len(TEXTS))], content[begin:end] * 2, b""][rng.integers(3)]
    return content[:begin] + middle + content[end:]


def edit_json(text, rng):
    """One value or name somewhere in a JSON object becomes another."""
    parsed = json.loads(text)
    places = []

    def visit(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                visit(node[key])

    visit(parsed)
    node, key = places[rng.integers(len(places))]
    value = VALUES[rng.integers(len(VALUES))]
    if isinstance(node[key], int) and rng.random() < 0.5:
        node[key] += int(rng.integers(-5, 6))
    elif isinstance(node, dict) and rng.random() < 0.2:
        node[str(value)] = node.pop(key)
    else:
        node[key] = value
    return json.dumps(parsed).encode()


def edit_header(content, rng):
    """The header of a safetensors file is edited, its length fits."""
    length = int.from_bytes(content[:8], "little")
    header = edit_json(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


@pytest.fixture(params=["single", "shards"])
def folder(request, tmp_path):
    tensors = tiny_encoder.random_tensors()
    {"single": tiny_encoder.write_single, "shards": tiny_encoder.write_shards}[request.param](
        tmp_path, tensors
    )
    return tmp_path


def mutations(suffix):
    edit = edit_header if suffix == ".safetensors" else edit_json
    return [flip_bits, cut, splice, edit]


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_damaged_folders_are_read_exactly_or_refused(folder, suffix):
    rng = np.random.default_rng(0)
    before = tiny_encoder.read(folder)
    paths = [path for path in sorted(folder.iterdir()) if path.suffix == suffix]
    originals = {path: path.read_bytes() for path in paths}
    outcomes = {"exact": 0, "other values": 0, "refused": 0}
    for i in range(NUM_MUTATIONS):
        path = paths[i % len(paths)]
        mutate = mutations(suffix)[i // len(paths) % 4]
        path.write_bytes(mutate(originals[path], rng))
        try:
            after = tiny_encoder.read(folder)
        except UserError as error:
            assert str(folder) in str(error)
            outcomes["refused"] += 1
        else:
            # A network of other sizes has other shapes: all that was asked for must be there.
            assert {n: t.shape for n, t in after.items()} == tiny_encoder.SHAPES
            assert all(np.isfinite(tensor).all() for tensor in after.values())
            same = all(np.array_equal(after[name], tensor) for name, tensor in before.items())
            assert same or suffix == ".safetensors", "a damaged .json file changed values"
            outcomes["exact" if same else "other values"] += 1
        path.write_bytes(originals[path])
    assert outcomes["refused"] > NUM_MUTATIONS / 2, outcomes
    assert outcomes["exact"] > 0, outcomes
    assert (outcomes["other values"] > 0) == (suffix == ".safetensors"), outcomes


UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_eps": 1e-5,
    "in_channels": 4,
}
VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}


@pytest.mark.parametrize(
    "fields, config, shapes",
    [
        (UNET, folder_configs.unet_config, reading.unet_shapes),
        (VAE, folder_configs.vae_config, reading.vae_shapes),
        (tiny_encoder.CONFIG, folder_configs.encoder_config, reading.encoder_shapes),
    ],
)
def test_damaged_configs_describe_a_network_or_are_refused(fields, config, shapes):
    rng = np.random.default_rng(0)
    content = json.dumps(fields).encode()
    outcomes = {"network": 0, "refused": 0}
    for i in range(200):
        damaged = mutations(".json")[i % 4](content, rng)
        try:
            sizes = config(strict_json.parse_object(damaged))
        except (UserError, ValueError):  # ValueError is how parse_object says that it is no JSON
            outcomes["refused"] += 1
        else:
            assert names.count_parameters(shapes(sizes)) > 0
            outcomes["network"] += 1
    assert min(outcomes.values()) > 0, outcomes
