"""What every importer can be asked for: format of pictures, where shards go, what is reported."""

import json

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from data_prep import colmap, nerf_json, procedural, zero123
from data_prep.lib import importing
from escherjax.data import images
from escherjax.errors import StoppedError, UserError
from tests.helpers.scene_folders import (
    SIZE,
    render_balls,
    run,
    write_transforms,
    write_zero123,
)

MAGIC = {"png": b"\x89PNG", "jpeg": b"\xff\xd8", "webp": b"RIFF"}


@pytest.fixture(scope="module")
def rendered():
    return render_balls()


@pytest.fixture
def opaque(rendered, tmp_path):
    """A folder with transforms.json and JPEG files."""
    flat = images.on_background(rendered[0], images.BLACK)
    focal = float(rendered[2][0, 0, 0])
    write_transforms(tmp_path / "one", (flat, *rendered[1:]), fl_x=focal, suffix=".jpg")
    for path in (tmp_path / "one" / "images").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=98, subsampling=0)
        path.unlink()
    return tmp_path / "one"


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", ["64", "32"])
@pytest.mark.parametrize("name", MAGIC)
def test_every_picture_gets_the_format_asked_for(opaque, tmp_path, name, size):
    source, _ = run(nerf_json, opaque, tmp_path / "out", "--format", name, "--resolution", size)
    files = [path.read_bytes() for path in sorted((opaque / "images").iterdir())]
    for data, file in zip(source[0].images, files, strict=True):
        assert data.startswith(MAGIC[name])
        assert (data == file) == (name == "jpeg" and size == "64")  # it need not be coded twice
        small = images.resize_image(images.decode_image(file, "file"), int(size), int(size))
        # Brightness, since JPEG and WebP halve the resolution of colours. Other views correlate
        # by less than 0.2.
        brightness = [p.mean(-1).ravel() for p in (images.decode_image(data, "view"), small)]
        assert np.corrcoef(brightness)[0, 1] > 0.9


def test_lower_quality_takes_fewer_bytes(opaque, tmp_path):
    sizes = []
    for quality in ("30", "95"):
        options = ("--format", "jpeg", "--quality", quality, "--resolution", "32")
        source, _ = run(nerf_json, opaque, tmp_path / quality, *options)
        sizes.append(sum(map(len, source[0].images)))
    assert sizes[0] < 0.9 * sizes[1]


def test_webp_of_quality_100_keeps_every_value_and_less_keeps_alpha(rendered, tmp_path):
    folder = write_zero123(tmp_path / "one", rendered)
    exact, _ = run(zero123, folder, tmp_path / "100", "--format", "webp", "--quality", "100")
    lossy, _ = run(zero123, folder, tmp_path / "60", "--format", "webp", "--quality", "60")
    for picture, same, near in zip(rendered[0], exact[0].images, lossy[0].images, strict=True):
        np.testing.assert_array_equal(images.decode_image(same, "view"), picture)
        decoded = images.decode_image(near, "view")
        assert (decoded != picture).any()
        np.testing.assert_array_equal(decoded[..., 3], picture[..., 3])


def test_jpeg_drops_opaque_alpha_and_refuses_any_other(rendered, tmp_path):
    write_zero123(tmp_path / "renders" / "clear", rendered)
    solid = rendered[0].copy()
    solid[..., 3] = 255
    write_zero123(tmp_path / "renders" / "solid", (solid, *rendered[1:]))
    source, report = run(zero123, tmp_path / "renders", tmp_path / "out", "--format", "jpeg")
    assert [source[i].scene_id for i in range(len(source))] == ["solid"]
    assert images.decode_image(source[0].images[0], "view").shape == (SIZE, SIZE, 3)
    assert "000.png cannot be stored: JPEG cannot hold" in report["skipped"][0]["reason"]


def test_procedural_scenes_take_a_format_too(tmp_path):
    arguments = ["--limit", "1", "--num-views", "2", "--resolution", "16", "--format", "webp"]
    procedural.main(["--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(UserError, match="--folders writes PNG"):
        procedural.main(["--out", str(tmp_path / "folders"), *arguments, "--folders"])


def test_report_counts_bytes_and_skipped_scenes_by_reason(rendered, tmp_path, capsys):
    part = tuple(array[:2] for array in rendered)
    for number in range(5):
        write_zero123(tmp_path / "renders" / f"no {number}", part)
    for number in (0, 1, 3):
        (tmp_path / "renders" / f"no {number}" / f"00{number % 2}.npy").unlink()
    (tmp_path / "renders" / "no 2" / "001.png").write_text("no picture")
    _, report = run(zero123, tmp_path / "renders", tmp_path / "out")
    shards = tmp_path.glob("out/*array_record*")
    assert report["bytes"] == sum(path.stat().st_size for path in shards) > 0
    assert report["skipped_by_reason"] == {
        "... view # has no pose (# such views)": 3,
        "... cannot be decoded (not a picture)": 1,
    }
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == (
        f"{tmp_path / 'out'}: 1 scenes (train 1), 2 views, 0.1 MB, 4 skipped "
        "(3: ... view # has no pose (# such views); 1: ... cannot be decoded (not a picture))"
    )
    assert printed[0].startswith("  skipped no 0: ")


@pytest.mark.parametrize(
    "more, message",
    [
        (("--quality", "90"), "--quality 90 needs --format jpeg or webp"),
        (("--format", "png", "--quality", "90"), "--quality 90 needs"),
        (("--format", "webp", "--quality", "0"), "must be 1 to 100, got 0"),
        (("--recenter", "--normalize", "none"), "--recenter needs --normalize"),
    ],
)
def test_contradictions_are_refused(tmp_path, more, message):
    for module in (nerf_json, colmap):
        with pytest.raises(UserError, match=message):
            module.main(["--source", str(tmp_path), "--out", str(tmp_path / "out"), *more])


def test_unknown_flags_and_addresses_are_refused(tmp_path, capsys):
    for more, message in (
        (["--out", "x", "--region", "here"], "unrecognized arguments: --region here"),
        (["--out", "x", "--work", "2"], "unrecognized arguments: --work 2"),  # nothing is guessed
        (["--out", "ftp://x"], "must be a folder, or an address that starts with gs://"),
    ):
        with pytest.raises(SystemExit) as stopped:
            zero123.main(["--source", str(tmp_path), *more])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


class Bucket(LocalFileSystem):
    """Stands for object storage: a folder that is reached by address alone."""

    root = ""

    @classmethod
    def _strip_protocol(cls, path):
        path = str(path)
        return path.replace("s3:/", cls.root, 1) if path.startswith("s3:/") else path

    def glob(self, path):
        return [found.removeprefix(f"{self.root}/") for found in super().glob(path)]


def test_shards_at_an_address_are_those_of_a_folder(rendered, tmp_path, monkeypatch):
    for name in "abcd":
        write_zero123(tmp_path / "renders" / name, tuple(array[:2] for array in rendered))
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    monkeypatch.setattr(Bucket, "root", str(tmp_path / "s3"))
    fsspec.register_implementation("s3", Bucket, clobber=True)
    options = ["--source", str(tmp_path / "renders"), "--shards", "2"]
    zero123.main([*options, "--out", str(tmp_path / "here")])

    def stop(scene_id, folder):
        raise StoppedError(f"at {scene_id}")

    args = importing.argument_parser("zero123", "test").parse_args(
        [*options, "--out", "s3://bucket/there"]
    )
    assert args.out == epath.Path("s3://bucket/there")
    items = [(name, tmp_path / "renders" / name) for name in "abcd"]
    with pytest.raises(StoppedError, match="at a"):
        importing.import_scenes(
            args, "zero123", list("abcd"), importing.SceneReader(stop, items, 1)
        )
    with pytest.raises(UserError, match="unfinished import with other arguments"):
        zero123.main([*options, "--out", "s3://bucket/there"])
    for _ in range(2):  # --overwrite takes away what is there
        zero123.main([*options, "--out", "s3://bucket/there", "--overwrite"])
        assert read_bytes(tmp_path / "s3" / "bucket" / "there") == read_bytes(tmp_path / "here")
    assert json.loads((tmp_path / "here" / "report.json").read_text())["scenes"] == 4


def test_address_without_its_package_is_an_error_that_names_it(rendered, tmp_path):
    write_zero123(tmp_path / "one", rendered)
    with pytest.raises(UserError, match="cannot be reached .* gcsfs, s3fs or adlfs"):
        zero123.main(["--source", str(tmp_path), "--out", "az://container/folder"])
