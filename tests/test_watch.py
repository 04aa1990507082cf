"""Where a run's time goes: the device's idle time, and the warning about a slow host."""

import threading

import jax.numpy as jnp
import pytest

from escherjax.train import perf
from escherjax.train.watch import Watch, Watchdog, Work
from tests.helpers.tiny import tiny_config


class Output:
    """Stands for a step's result; the step ends when it is told to."""

    def __init__(self):
        self._end = threading.Event()

    def block_until_ready(self):
        self._end.wait()

    def end(self, idle):
        self._end.set()
        idle._ended.result()


@pytest.fixture
def idle():
    idle = perf.IdleTime()
    yield idle
    idle.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    now = [100.0]
    monkeypatch.setattr(perf.time, "perf_counter", lambda: now[0])
    return now


def test_device_is_idle_from_the_end_of_a_step_to_the_next_hand_over(idle, clock):
    idle.handing_over()
    first = Output()
    idle.handed_over(first)
    clock[0] = 103.0
    first.end(idle)
    clock[0] = 105.5
    idle.handing_over()
    assert idle.seconds == 2.5


def test_device_that_still_computes_is_not_idle(idle, clock):
    first, second = Output(), Output()
    idle.handed_over(first)
    clock[0] = 107.0
    idle.handing_over()
    idle.handed_over(second)
    first._end.set()
    second.end(idle)
    assert idle.seconds == 0
    idle.forget()  # a pause for saving
    clock[0] = 200.0
    idle.handing_over()
    assert idle.seconds == 0


class Rows:
    def __init__(self):
        self.rows = []

    def write(self, step, values):
        self.rows.append(values)


def test_a_host_that_is_too_slow_is_warned_about_once(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    rows = Rows()
    watch = Watch(tiny_config(log_every_steps=1), rows, 0, Watchdog(tmp_path, 0))
    metrics = {name: jnp.ones(()) for name in ("loss", "grad_norm", "valid_scenes")}
    for step in range(1, 5):
        watch.computing(f"computing update {step}")
        watch._idle.seconds += 1e6  # in place of a wait
        watch.dispatched(step, metrics, ["scene"], Work(1, 0.0))
    watch.settle()
    watch.close()
    assert [row["host_bound_frac"] > 0.1 for row in rows.rows] == [True, True, True, False]
    assert caplog.text.count("config.data.num_workers") == 1
