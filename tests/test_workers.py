"""Processes that make batches: the same ones in order, whatever happens to a process."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import ml_dtypes
import numpy as np
import pytest

from escherjax.data import workers
from escherjax.errors import UserError

SLOT_BYTES = 4096


def function_of_a_script():
    """A function that cannot be imported, and so travels by value."""

    def squares(number, allocate):
        image = allocate((3, 5), np.uint8)
        image[:] = number % 256
        moments = allocate((2, 7), ml_dtypes.bfloat16)
        moments[:] = number / 4
        names = np.array([f"scene {number}", None], object)
        return {"image": image, "moments": moments, "names": names, "count": np.full(2, number)}

    return squares


squares = function_of_a_script()


@contextlib.contextmanager
def pool_of(make, first=0, num_workers=1, waiting=2):
    pool = workers.WorkerPool(make, first, num_workers, waiting, SLOT_BYTES)
    try:
        yield pool
    finally:
        pool.close()


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        np.testing.assert_array_equal(array, right[name])


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("nothing happened for a minute")


def test_batches_come_in_order_whoever_makes_them():
    with pool_of(squares, 7, num_workers=3) as pool:
        for number in range(7, 30):
            assert_same(next(pool), squares(number, np.empty))


def test_batches_stay_as_they_are_for_as_long_as_they_are_kept():
    with pool_of(squares) as pool:
        kept = [next(pool) for _ in range(20)]
    for number, batch in enumerate(kept):
        assert_same(batch, squares(number, np.empty))


def test_a_batch_lies_in_memory_that_has_no_name_and_is_used_again():
    with pool_of(squares) as pool:
        places = {next(pool)["image"].ctypes.data for _ in range(20)}
        assert len(places) <= 5  # two that wait, and three that a caller may hold
        if sys.platform == "linux":
            maps = pathlib.Path(f"/proc/{pool.process_ids()[0]}/maps").read_text()
            assert "memfd:escherjax" in maps and "/dev/shm" not in maps


def test_a_killed_process_is_replaced_and_no_batch_is_lost(caplog):
    with pool_of(squares, num_workers=2) as pool:
        assert_same(next(pool), squares(0, np.empty))
        before = pool.process_ids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        for number in range(1, 12):
            assert_same(next(pool), squares(number, np.empty))
        assert not set(before) & set(pool.process_ids())
    assert "exit code -9" in caplog.text


def test_a_process_that_dies_over_a_batch_makes_it_again(tmp_path):
    mark = str(tmp_path / "died")

    def make(number, allocate):
        array = allocate((4,), np.int64)
        array[:2] = number
        if number == 3 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), 9)
        array[2:] = number
        return {"array": array}

    with pool_of(make) as pool:
        assert [next(pool)["array"].tolist() for _ in range(6)] == [[n] * 4 for n in range(6)]
    assert os.path.exists(mark)


def test_processes_that_always_die_end_the_run_with_advice():
    def make(number, allocate):
        os.kill(os.getpid(), 9)

    with pool_of(make) as pool, pytest.raises(UserError, match="exit code -9.*num_workers lower"):
        next(pool)


def test_an_error_of_a_process_is_raised_here_with_its_place():
    def make(number, allocate):
        raise ValueError("no such thing")

    with pool_of(make) as pool:
        with pytest.raises(RuntimeError, match="(?s)in make.*no such thing"):
            next(pool)
        assert pool.process_ids() == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_are_polite_quiet_and_leave_signals_to_their_parent():
    with pool_of(squares) as pool:
        next(pool)
        (pid,) = pool.process_ids()
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGHUP)
        assert os.getsid(pid) != os.getsid(0)  # so a terminal's Ctrl-C does not come at all
        for _ in range(10):
            next(pool)
        assert pool.process_ids() == [pid]
    assert not is_running(pid)


SCRIPT = """
    import os, signal, sys
    import numpy as np
    from escherjax.data import workers

    def make(number, allocate):
        if number == 2:
            signal.pause()  # in the middle of a batch
        array = allocate((8,), np.uint8)
        array[:] = number
        return {"array": array}

    pool = workers.WorkerPool(make, 0, 2, 4, 4096)
    next(pool)
    print(*pool.process_ids(), flush=True)
    end(pool)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "end, code",
    [
        ("lambda pool: os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("lambda pool: os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("lambda pool: next(iter(()))", 1),
        ("lambda pool: None", 0),
    ],
)
def test_no_process_outlives_a_script_however_it_ends(tmp_path, end, code):
    """The script has no `if __name__ == "__main__"`, and never closes its pool."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).replace("end(pool)", f"({end})(pool)"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=300
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2 and done.returncode == code, done.stderr
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_default_leaves_two_cores_to_the_trainer(monkeypatch):
    for cores, count in ((1, 0), (2, 0), (3, 1), (16, 14), (128, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n), raising=False)
        assert workers.default_workers() == count
