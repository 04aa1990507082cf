"""Imports as Apache Beam pipelines make the bytes of a local import."""

import sys

import pytest

from data_prep import zero123
from data_prep.lib import importing
from escherjax.data import shards
from escherjax.data.formats import folders
from escherjax.errors import StoppedError, UserError
from tests.helpers.scene_folders import render_balls, write_zero123

DIRECT = ("--runner", "DirectRunner", "--direct_running_mode", "multi_processing")
DIRECT += ("--direct_num_workers", "2")


@pytest.fixture
def options(tmp_path):
    rendered = render_balls()
    for number in range(7):
        part = tuple(array[: 2 + number % 3] for array in rendered)
        write_zero123(tmp_path / "renders" / f"scene-{number}", part)
    (tmp_path / "renders" / "scene-1" / "000.npy").unlink()
    return ["--source", str(tmp_path / "renders"), "--shards", "3", "--heldout", "2"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_missing_beam_is_named_before_anything_is_read(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"needs Apache Beam .*pip install 'escherjax\[beam\]'"):
        zero123.main([*options, "--out", str(tmp_path / "out"), *DIRECT])
    assert not (tmp_path / "out").exists()


def test_unknown_runners_and_flags_are_refused(options, tmp_path):
    pytest.importorskip("apache_beam")
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--runner CarrierPigeon"):
        zero123.main([*options, *out, "--runner", "CarrierPigeon"])
    with pytest.raises(UserError, match="neither this command nor Beam knows.*pigeons"):
        zero123.main([*options, *out, *DIRECT, "--pigeons=3"])
    assert not (tmp_path / "out").exists()


def import_until(options, last, error):
    """The zero123 import of these options, which raises `error` when scene `last` is read."""
    parser = importing.argument_parser("zero123", "test")
    zero123.add_arguments(parser)
    args = parser.parse_args(options)
    found = folders.find_scene_folders(args.source, "zero123")

    def read_scene(scene_id, folder):
        if scene_id == last:
            raise error
        return importing.Imported(folders.read_scene_folder(folder, scene_id))

    ids = [scene_id for scene_id, _ in found]
    importing.import_scenes(args, "zero123", ids, importing.SceneReader(read_scene, found, 1))


def test_processes_of_beam_finish_a_stopped_import_with_the_same_bytes(options, tmp_path):
    pytest.importorskip("apache_beam")
    zero123.main([*options, "--out", str(tmp_path / "whole"), "--workers", "1"])
    again = [*options, "--out", str(tmp_path / "again")]
    with pytest.raises(KeyboardInterrupt):
        import_until(again, "scene-3", KeyboardInterrupt())
    kept = {path: path.stat().st_ino for path in tmp_path.glob("again/*array_record*[0-9]")}
    assert len(kept) == 2
    zero123.main([*again, *DIRECT])
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    # What was whole is not written twice.
    assert {path: path.stat().st_ino for path in kept} == kept


def test_failed_pipeline_keeps_whole_shards_and_says_why(options, tmp_path):
    pytest.importorskip("apache_beam")
    out = [*options, "--out", str(tmp_path / "out"), "--runner", "FnApiRunner"]
    with pytest.raises(StoppedError, match="pipeline of FnApiRunner failed: .*no room at all"):
        import_until(out, "scene-3", StoppedError("no room at all"))
    assert not list(tmp_path.glob("out/*.tmp"))
    with pytest.raises(UserError, match="not a whole data set"):
        shards.open_shards(tmp_path / "out")
    zero123.main(out)
    assert len(shards.open_shards(tmp_path / "out")) == 4
