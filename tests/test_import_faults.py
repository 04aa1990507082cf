"""Imports that are killed, run out of disk or lose a worker: named, nothing half, same bytes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_prep import zero123
from data_prep.lib import importing
from escherjax.data import shards
from escherjax.errors import UserError
from tests.helpers.scene_folders import SIZE, render_balls, write_zero123

SHARDS = "--shards", "3", "--resolution", "0"


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    """Six scenes; the fourth has a picture of 200 kB of noise."""
    folder, rendered = tmp_path_factory.mktemp("renders"), render_balls()
    for number in range(6):
        write_zero123(folder / f"scene-{number}", tuple(array[:2] for array in rendered))
    noise = Image.frombytes("RGBA", (SIZE, SIZE), os.urandom(4 * SIZE * SIZE))
    for name in ("000", "001"):
        noise.resize((4 * SIZE, 4 * SIZE)).save(folder / "scene-3" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def whole(renders, tmp_path_factory):
    """What an undisturbed import makes: {file name: bytes}."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(renders, out)
    return contents(out)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def finish(source, out, *more):
    zero123.main(["--source", str(source), "--out", str(out), "--workers", "1", *SHARDS, *more])


def start(source, out, *more, before="pass"):
    """The command in a process of its own, which runs the statements `before` first."""
    run = "import runpy; runpy.run_module('data_prep.zero123', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", f"{before}; {run}", "--source", source, "--out", out]
    return subprocess.Popen([*map(str, command), *SHARDS, *more], stderr=subprocess.PIPE, text=True)


def assert_only_whole_shards(out, whole, expected):
    """Of the data set nothing but these shards is there, each as an undisturbed import makes it."""
    present = contents(out)
    assert sorted(present) == [f"scenes-train.array_record-{n:05d}-of-00003" for n in expected]
    assert all(whole[name] == data for name, data in present.items())


@pytest.fixture
def stuck(renders):
    """Makes a picture of scene 3 a pipe: whoever reads it waits, and the test knows that it does.

    Yields a function that waits for a reader and returns the reader's process.
    """
    picture = renders / "scene-3" / "001.png"
    data = picture.read_bytes()
    picture.unlink()
    os.mkfifo(picture)
    ends = []

    def reader(command):
        ends.append(os.open(picture, os.O_WRONLY))  # returns once it is opened for reading
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        for process in (str(command.pid), *children):
            opened = Path(f"/proc/{process}/fd").iterdir()
            if any(link.is_symlink() and os.readlink(link) == str(picture) for link in opened):
                return int(process)
        raise AssertionError("nobody reads the pipe")

    def mend():
        for end in ends:
            os.close(end)
        picture.unlink()
        picture.write_bytes(data)

    reader.mend = mend
    yield reader
    if picture.is_fifo():
        mend()


def test_full_disk_keeps_whole_shards_and_says_so(renders, whole, tmp_path):
    out = tmp_path / "out"

    # No file may grow beyond this: shards 0 and 2 fit, shard 1 does not.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))"
    command = start(renders, out, "--workers", "1", before=limit)
    _, errors = command.communicate()
    assert command.returncode == 1
    assert f"stopped: no room to write {out} (File too large)" in errors
    assert "Traceback" not in errors
    assert_only_whole_shards(out, whole, [0])
    finish(renders, out)
    assert contents(out) == whole


def test_killed_worker_is_named_the_others_finish_and_the_next_try_goes_on(
    renders, whole, stuck, tmp_path
):
    out = tmp_path / "out"
    command = start(renders, out, "--workers", "8")
    worker = stuck(command)
    assert worker != command.pid
    os.kill(worker, signal.SIGKILL)
    _, errors = command.communicate()
    assert command.returncode == 1
    # The scene before may or may not have been passed on when the kill came.
    assert re.search(
        r"stopped: the process that wrote scenes-train.array_record-00001-of-00003 died "
        r"\(killed by SIGKILL, as by a machine out of memory\) after [01] of its 2 scenes, "
        r"near 'scene-[23]'",
        errors,
    )
    stuck.mend()
    for leftover in out.glob("*.tmp"):  # the name that a killed process leaves is not the shard's
        assert leftover.name.startswith("scenes-train.array_record-00001-of-00003.")
        leftover.unlink()
    assert_only_whole_shards(out, whole, [0, 2])
    finish(renders, out)
    assert contents(out) == whole


def test_import_killed_in_the_middle_of_a_shard_goes_on_to_the_same_bytes(
    renders, whole, stuck, tmp_path
):
    out = tmp_path / "out"
    command = start(renders, out, "--workers", "1")
    os.kill(stuck(command), signal.SIGKILL)
    command.communicate()
    assert command.returncode == -signal.SIGKILL
    stuck.mend()
    assert len(list(out.glob("*.tmp"))) == 1
    with pytest.raises(UserError, match="not a whole data set"):
        shards.open_shards(out)
    finish(renders, out)
    assert contents(out) == whole


def test_ids_that_repeat_are_all_named(renders, tmp_path):
    args = importing.argument_parser("test", "test").parse_args(
        ["--source", str(renders), "--out", str(tmp_path / "out")]
    )
    reader = importing.SceneReader(None, [], 1)
    with pytest.raises(UserError, match="scene id 'b', 'c' comes twice"):
        importing.import_scenes(args, "test", ["a", "b", "b", "c", "c", "c"], reader)
    assert not (tmp_path / "out").exists()
