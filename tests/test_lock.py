"""The lock of a work directory, between processes that really run and really die."""

import json
import subprocess
import sys
import threading

import pytest

from escherjax.errors import UserError
from escherjax.weights import lock

HOLD = """
import sys
from pathlib import Path
from escherjax.weights import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_until_the_first_is_gone_however_it_went(tmp_path, holder):
    with (
        pytest.raises(UserError, match=f"in use by another run: process {holder.pid} on "),
        lock.held(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / lock.FILE_NAME).read_text())["pid"] == holder.pid
    with lock.held(tmp_path):  # at once: the kernel dropped it
        pass
    assert (tmp_path / lock.FILE_NAME).read_bytes() == b""


def test_a_run_on_another_machine_counts_while_its_beat_moves(tmp_path, monkeypatch):
    """As on a file system that carries no locks: only what is in the file can tell."""
    monkeypatch.setattr(lock, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    file = tmp_path / lock.FILE_NAME
    other = {"host": "elsewhere", "pid": 7, "started": "2024-01-01", "boot": "another"}
    gone = threading.Event()

    def beat():
        count = 0
        while not gone.wait(0.02):
            count += 1
            file.write_text(json.dumps({**other, "beat": count}))

    file.write_text(json.dumps({**other, "beat": 0}))
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="process 7 on elsewhere"), lock.held(tmp_path):
            pass
    finally:
        gone.set()
        thread.join()
    with lock.held(tmp_path):  # it moves no more
        assert json.loads(file.read_text())["host"] != "elsewhere"
