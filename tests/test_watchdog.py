"""What a run that stands still shows of itself."""

import os
import signal
import time

from escherjax.train.watch import Watchdog
from tests.helpers.patience import wait_until


def test_a_signal_shows_all_stacks_in_the_file_and_on_stderr(tmp_path, capsys):
    file = tmp_path / "stacks_host0.txt"
    with Watchdog(tmp_path, stall_seconds=0):
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: "test_a_signal_shows_all_stacks" in file.read_text())
        assert file.read_text().count(" in _watch\n") == 1  # the other thread
    assert file.read_text() in capsys.readouterr().err


def test_a_stall_is_told_once_with_what_it_stands_at(tmp_path, caplog):
    file = tmp_path / "stacks_host0.txt"
    with caplog.at_level("WARNING"), Watchdog(tmp_path, stall_seconds=0.1) as watchdog:
        watchdog.note("computing update 7")
        wait_until(lambda: "while computing update 7" in caplog.text)
        wait_until(lambda: "test_a_stall_is_told_once" in file.read_text())
        first = file.read_text()
        time.sleep(1.2)  # two more looks
        assert file.read_text() == first
        watchdog.note("computing update 8")
        wait_until(lambda: "moving again" in caplog.text)


def test_nothing_is_left_where_nothing_happened(tmp_path):
    with Watchdog(tmp_path, stall_seconds=60):
        pass
    assert not list(tmp_path.iterdir())
