"""Importers under threads: nothing is imported there, and one broken scene stops no other."""

import errno
import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from data_prep import zero123
from data_prep.lib import importing
from escherjax.data.formats import folders
from escherjax.errors import StoppedError, UserError
from tests.helpers.scene_folders import render_balls, run, write_transforms, write_zero123

# TensorFlow Datasets replaces the process's __import__ while it is imported, and then an import in
# another thread fails now and then. Here it fails always, in either order, in a fresh process.
GUARD = """
import builtins, runpy, sys, threading
original = builtins.__import__
OURS = "data_prep", "escherjax", "__main__", "__mp_main__"

def of_ours(thread):
    return thread.name.startswith("ThreadPoolExecutor")

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    package = (globals or {}).get("__name__", "").split(".")[0]
    by_numpy = name.startswith("numpy._core")  # numpy's compiled code, on behalf of its caller
    if of_ours(threading.current_thread()) and package in OURS and not by_numpy:
        raise RuntimeError(f"{package} imports {name} in a thread")
    late = name.startswith("tensorflow_datasets") and name not in sys.modules
    if late and any(map(of_ours, threading.enumerate())):
        raise RuntimeError(f"{name} is imported while threads run")
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
FOUR = tuple(f"scene-{number}" for number in range(4))


@pytest.fixture(scope="module")
def rendered():
    return tuple(array[:2] for array in render_balls())


@pytest.mark.parametrize("module", ["zero123", "nerf_json", "procedural"])
def test_threads_of_importers_import_nothing(rendered, tmp_path, module):
    source = ["--source", tmp_path / "in"]
    for name in FOUR:
        write_zero123(tmp_path / "in" / name, rendered)
        write_transforms(tmp_path / "in" / name, rendered, fl_x=60.0)
    if module == "procedural":
        source = ["--limit", "3", "--num-views", "2", "--resolution", "16"]
    elif module == "nerf_json":
        (tmp_path / "in" / "scene-2" / "transforms.json").write_text("[]")  # read last, and refused
    else:
        for name in FOUR:
            (tmp_path / "in" / name / "transforms.json").unlink()
    command = [sys.executable, "-c", GUARD, f"data_prep.{module}", *source]
    command += ["--out", tmp_path / "out", "--workers", "8"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "in a thread" not in done.stdout and "while threads" not in done.stdout
    assert (tmp_path / "out" / "dataset_info.json").exists()


def import_with(tmp_path, rendered, read_second):
    """Imports four scenes, of which `read_second` is called for the second; the report."""
    for name in FOUR:
        write_zero123(tmp_path / "in" / name, rendered)
    options = ["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    args = importing.argument_parser("zero123", "test").parse_args(options)

    def read(scene_id, folder):
        if scene_id == "scene-1":
            read_second()
        return importing.Imported(folders.read_scene_folder(folder, scene_id))

    items = [(name, tmp_path / "in" / name) for name in FOUR]
    importing.import_scenes(args, "zero123", FOUR, importing.SceneReader(read, items, 2))
    return json.loads((tmp_path / "out" / "report.json").read_text())


def raises(error):
    def read():
        raise error

    return read


@pytest.mark.parametrize(
    "read",
    [
        lambda: 1 / 0,
        lambda: {}["frames"],
        lambda: int("wide"),
        lambda: np.linalg.inv(np.zeros((3, 3))),
        lambda: np.zeros((1 << 40, 1 << 20)),
        raises(PermissionError(errno.EACCES, "Permission denied", "001.png")),
        raises(struct.error("unpack requires 8 bytes")),
        raises(RecursionError("maximum recursion depth exceeded")),
    ],
)
def test_any_exception_skips_its_scene_with_the_folder_and_keeps_the_others(
    rendered, tmp_path, read
):
    report = import_with(tmp_path, rendered, read)
    assert report["scenes"] == 3
    (skipped,) = report["skipped"]
    assert skipped["scene_id"] == "scene-1"
    with pytest.raises(Exception) as caught:
        read()
    for words in (tmp_path / "in" / "scene-1", type(caught.value).__name__, caught.value):
        assert str(words) in skipped["reason"]


@pytest.mark.parametrize(
    "error", [StoppedError("the work directory is gone"), OSError(errno.ENOSPC, "No space left")]
)
def test_what_is_no_fault_of_a_scene_stops_the_import(rendered, tmp_path, error):
    with pytest.raises(StoppedError, match="is gone|no room to write"):
        import_with(tmp_path, rendered, raises(error))


def test_import_of_broken_scenes_alone_is_the_users_error(rendered, tmp_path, monkeypatch):
    write_zero123(tmp_path / "in" / "one", rendered)
    monkeypatch.setattr(folders, "find_views", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match="none of 1 scenes can be used.*'one'.*ZeroDivisionError"):
        run(zero123, tmp_path / "in", tmp_path / "out")
