"""Pictures: every kind that cameras and renderers write is read right, or refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep import nerf_json
from escherjax.data import images
from escherjax.errors import UserError
from tests.helpers.scene_folders import (
    SIZE,
    assert_balls_where_projected,
    render_balls,
    run,
    write_transforms,
)

COLORS = np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8)


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def tagged(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png(width, height, bits, kind, rows):
    """A PNG file written chunk by chunk; rows: raw samples, each row behind its filter byte."""

    def chunk(name, data):
        size, check = (struct.pack(">I", n) for n in (len(data), zlib.crc32(name + data)))
        return size + name + data + check

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_come_as_stored_and_are_turned_upright_as_the_tag_says(orientation):
    for options in ({"kind": "PNG"}, {"kind": "WEBP", "lossless": True}):
        data = encoded(COLORS[..., :3], exif=tagged(orientation), **options)
        picture, tag = images.decode_tagged(data, "photo")
        np.testing.assert_array_equal(picture, COLORS[..., :3])
        np.testing.assert_array_equal(images.decode_image(data, "photo"), COLORS[..., :3])
        assert tag == orientation
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        np.testing.assert_array_equal(images.turn_upright(picture, tag), expected)


def test_impossible_orientation_is_upright():
    assert images.decode_tagged(encoded(COLORS, exif=tagged(9)), "photo")[1] == 1


def test_modes_of_eight_bits_become_colours_with_alpha_where_there_is_some():
    colours, grey = Image.fromarray(COLORS[..., :3]), Image.fromarray(COLORS[..., 0])
    palette = colours.quantize(8)
    expected = {
        "L": (grey, grey.convert("RGB")),
        "1": (grey.convert("1"), grey.convert("1").convert("RGB")),
        "P": (palette, palette.convert("RGB")),
        "LA": (Image.merge("LA", (grey, grey)), Image.merge("RGBA", (grey,) * 4)),
        "RGBA": (Image.fromarray(COLORS), Image.fromarray(COLORS)),
    }
    for mode, (picture, wanted) in expected.items():
        assert picture.mode == mode
        decoded = images.decode_image(encoded(picture), mode)
        np.testing.assert_array_equal(decoded, np.asarray(wanted))


def test_sixteen_bit_colours_keep_their_upper_byte():
    samples = np.random.default_rng(1).integers(0, 1 << 16, (6, 9, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    decoded = images.decode_image(png(9, 6, 16, 2, rows), "deep")
    np.testing.assert_array_equal(decoded, samples >> 8)


def test_pngs_have_the_same_pixels_whichever_library_decodes_them(monkeypatch):
    pytest.importorskip("pyspng")
    rng = np.random.default_rng(2)
    smooth = np.add.outer(np.arange(40), np.arange(50))[..., None] * [1, 2, 3, 4] % 256
    pictures = [rng.integers(0, 256, (40, 50, 4)), smooth, np.where(smooth % 3, smooth, 0)]
    opaque = [Image.fromarray(picture[..., :3].astype(np.uint8)) for picture in pictures]
    data = [encoded(Image.fromarray(picture.astype(np.uint8))) for picture in pictures]
    data += [encoded(picture, compress_level=level) for picture in opaque for level in (0, 9)]
    data += [encoded(picture, transparency=(0, 0, 0)) for picture in opaque]
    decoded = [images.decode_image(picture, "photo") for picture in data]
    monkeypatch.setattr(images, "_decode_png", None)
    for picture, pixels in zip(data, decoded, strict=True):
        by_pillow = images.decode_image(picture, "photo")
        assert by_pillow.dtype == pixels.dtype
        np.testing.assert_array_equal(by_pillow, pixels)


def many_frames(kind):
    frames = [Image.fromarray(COLORS[..., :3]), Image.fromarray(255 - COLORS[..., :3])]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def refused():
    photo = encoded(COLORS[..., :3], "JPEG")
    deep = png(9, 6, 16, 0, b"".join(b"\0" + bytes(18) for _ in range(6)))
    return {
        "empty": (b"", "it is empty"),
        "truncated PNG": (encoded(COLORS)[:-40], "cannot be decoded"),
        "truncated JPEG": (photo[: len(photo) // 2], "cannot be decoded"),
        "truncated WebP": (encoded(COLORS, "WEBP")[:-20], "cannot be decoded"),
        "16-bit grey": (deep, "of mode 'I;16'"),
        "CMYK": (encoded(Image.fromarray(COLORS, "CMYK"), "JPEG"), "of mode 'CMYK'"),
        "animated PNG": (many_frames("PNG"), "an animation of 2 frames"),
        "animated WebP": (many_frames("WEBP"), "an animation of 2 frames"),
        "bitmap": (encoded(COLORS[..., :3], "BMP"), "whole PNG, JPEG or WebP"),
        # a few hundred bytes that ask for gigabytes
        "bomb": (png(12000, 12000, 8, 2, b""), "12000 x 12000 pixels"),
        "large bomb": (png(60000, 60000, 8, 2, b""), "3600000000 pixels"),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", sorted(refused()))
def test_what_cannot_be_read_right_is_refused_by_name(kind):
    data, reason = refused()[kind]
    with pytest.raises(UserError, match=f"^photo .*{reason}"):
        images.decode_image(data, "photo")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_header_alone_tells_size_and_bombs():
    data = encoded(COLORS, exif=tagged(6))
    assert images.picture_size(data, "photo") == (6, 9)
    with pytest.raises(UserError, match="^photo .*12000 x 12000"):
        images.picture_size(refused()["bomb"][0], "photo")


def test_photo_with_further_pictures_behind_it_is_the_first():
    data = many_frames("MPO")
    assert images.decode_image(data, "phone").shape == (6, 9, 3)


def test_damaged_bytes_are_decoded_or_refused_and_nothing_else():
    rng = np.random.default_rng(2)
    whole = [encoded(COLORS, exif=tagged(6)), encoded(COLORS[..., :3], "JPEG", exif=tagged(3))]
    whole += [encoded(COLORS, "WEBP", exif=tagged(8)), encoded(Image.fromarray(COLORS[..., 0]))]
    refusals = 0
    for number in range(400):
        data = bytearray(whole[number % 4])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        try:
            picture, tag = images.decode_tagged(bytes(data), "photo")
            assert picture.dtype == np.uint8 and 1 <= tag <= 8
        except UserError:
            refusals += 1
    assert 50 < refusals < 400  # most of such small files is structure, not pixels


def test_cameras_in_files_keep_pixels_as_stored_and_no_tag_is_kept(tmp_path):
    rendered = render_balls()
    folder = write_transforms(tmp_path / "one", rendered, fl_x=float(rendered[2][0, 0, 0]))
    for path in (folder / "images").iterdir():
        Image.open(path).save(path, exif=tagged(6))
    options = ("--normalize", "none", "--resolution", "0")
    source, _ = run(nerf_json, folder, tmp_path / "out", *options)
    assert source[0].height == SIZE
    assert_balls_where_projected(source[0])
    assert all(images.decode_tagged(data, "view")[1] == 1 for data in source[0].images)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pytorch_pipeline_turns_pictures_and_refuses_bombs(tmp_path):
    pytest.importorskip("torch")
    from escherjax.pytorch.images import read_images

    square = COLORS[:, :6, :3]
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(np.rot90(square), exif=tagged(6)))
    pixels = read_images([path], 6).movedim(1, -1)[0].numpy()
    np.testing.assert_allclose(pixels, square / 127.5 - 1, atol=1e-6)  # float32 rounding
    path.write_bytes(refused()["bomb"][0])
    with pytest.raises(UserError, match="photo.png: 12000 x 12000"):
        read_images([path], 6)
