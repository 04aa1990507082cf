"""Background removal through rembg, with a small model file of our own: dark is the object."""

import sys

import numpy as np
import pytest

from escherjax.data.inputs import read_inputs
from escherjax.data.photos.matting import open_matting
from escherjax.errors import UserError


def message(*fields):
    """A protobuf message: (number, value) with int, text, bytes or a list of packed ints."""
    encoded = b""
    for number, value in fields:
        if isinstance(value, int):
            encoded += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else bytes(value)
            encoded += varint(number << 3 | 2) + varint(len(data)) + data
    return encoded


def varint(value):
    head = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(byte | 128 for byte in head[:-1]), head[-1]])


def darkness_model(side):
    """ONNX bytes of float32 [1, 3, side, side] -> [1, 1, side, side]: 1 where dark, else -1.

    Field numbers are those of onnx.proto3: ModelProto, GraphProto, NodeProto, AttributeProto.
    """

    def tensor(name, *shape):
        dims = message(*((1, message((1, size))) for size in shape))
        return message((1, name), (2, message((1, message((1, 1), (2, dims))))))

    axes = message((1, "axes"), (8, 1), (20, 7))  # ints, of type INTS
    keep = message((1, "keepdims"), (3, 1), (20, 2))  # int, of type INT
    mean = message((1, "in"), (2, "mean"), (4, "ReduceMean"), (5, axes), (5, keep))
    negative = message((1, "mean"), (2, "negative"), (4, "Neg"))
    sign = message((1, "negative"), (2, "out"), (4, "Sign"))
    graph = message(
        (1, mean),
        (1, negative),
        (1, sign),
        (2, "darkness"),
        (11, tensor("in", 1, 3, side, side)),
        (12, tensor("out", 1, 1, side, side)),
    )
    return message((1, 8), (8, message((1, ""), (2, 13))), (7, graph))


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("rembg")
    path = tmp_path / "darkness.onnx"
    path.write_bytes(darkness_model(320))
    return f"u2net:{path}"


def photo():
    picture = np.full((160, 240, 3), 180, np.uint8)
    picture[40:120, 70:130] = (20, 40, 30)
    return picture


def test_the_object_is_found_and_framed(model):
    alpha = open_matting(model)(photo())
    assert alpha.shape == (160, 240) and alpha.dtype == np.uint8
    assert alpha[60:100, 90:110].min() == 255 and alpha[:20].max() == 0
    read = read_inputs([photo()], 64, cameras=["front"], matting=model)
    assert (read.images[0][[0, -1]] == 1).all() and (read.images[0][:, [0, -1]] == 1).all()
    rows = np.argwhere(read.images[0].min(-1) < 0.3)[:, 0]
    # the box is 80 pixels high: 1.06 * (280 / 256) / 1.5 of the frame, but for soft edges
    assert np.ptp(rows) + 1 == pytest.approx(0.773 * 64, abs=3)
    (note,) = (str(note) for note in read.notes)
    assert "background by u2net" in note and "box made 77% of the frame" in note


def test_pictures_with_transparency_keep_theirs(model):
    clear = np.dstack([photo(), np.zeros((160, 240), np.uint8)])
    clear[50:60, 80:90, 3] = 255
    read = read_inputs([clear], 64, cameras=["front"], matting=model)
    expected = read_inputs([clear], 64, cameras=["front"])
    np.testing.assert_array_equal(read.images, expected.images)
    assert "matting left out" in read.notes[0].text


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_picture_without_an_object_is_refused(model):
    with pytest.raises(UserError, match=r"transparent everywhere \(background by u2net\)"):
        read_inputs([photo()[:30]], 64, cameras=["front"], matting=model)


def test_unknown_models_and_broken_files_are_refused(model, tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    for text, reason in {
        "unet": "'unet' is unknown.*u2net",
        "withoutbg": "'withoutbg' is unknown",  # it would send pictures to a server
        "sam": "'sam' is unknown",
        f"u2net:{tmp_path}/none": "not found.*the ONNX file of u2net",
        f"u2net:{tmp_path}/text.onnx": "cannot be opened .*the ONNX file",
        "u2net_custom": "cannot be opened .*model_path.*name its file",
    }.items():
        with pytest.raises(UserError, match=reason):
            open_matting(text)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'escherjax\[matting\]'.*mask"):
        open_matting("u2net")
