"""The queue of requests: one at a time, places, cancelling, time, failures."""

import threading
import time

import numpy as np
import pytest

from escherjax.demo.jobs import JobQueue
from escherjax.demo.limits import Limits
from escherjax.demo.session import Request
from escherjax.errors import UserError
from escherjax.models.diffusion.sampling import Sampling
from escherjax.sample.targets import Targets
from tests.helpers.patience import PATIENCE_SEC

VIEWS = np.zeros((2, 4, 4, 3), np.uint8)


def request():
    pose = np.eye(4, dtype=np.float32)[None]
    return Request(VIEWS, pose, Targets(pose, np.ones(1), True, True, {}), Sampling(25, 3.0))


class Runner:
    """Runs in steps that the test lets through one by one."""

    def __init__(self):
        self.gate, self.at_once, self.most, self.order = threading.Semaphore(0), 0, 0, []

    def __call__(self, job):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.order.append(job)
        try:
            for step in range(3):
                assert self.gate.acquire(timeout=PATIENCE_SEC)
                job.report(step + 1, 3)
            return VIEWS
        finally:
            self.at_once -= 1


class Watched:
    """A job's changes, to wait for."""

    def __init__(self, queue):
        self.changed = threading.Condition()
        self.job = queue.submit(request(), self.notice)

    def notice(self, job):
        with self.changed:
            self.changed.notify_all()

    def wait(self, is_so):
        with self.changed:
            assert self.changed.wait_for(lambda: is_so(self.job), timeout=PATIENCE_SEC), self.job


@pytest.fixture
def runner():
    return Runner()


@pytest.fixture
def queue(runner):
    queue = JobQueue(runner, Limits(waiting=2))
    yield queue
    runner.gate.release(100)
    queue.close()


def test_jobs_run_one_at_a_time_in_their_order_and_know_their_place(runner, queue):
    first = Watched(queue)
    first.wait(lambda job: job.status == "running")
    second, third = Watched(queue), Watched(queue)
    assert [second.job.ahead, third.job.ahead] == [1, 2]
    runner.gate.release(3)
    first.wait(lambda job: job.status == "done")
    third.wait(lambda job: job.ahead == 1)
    runner.gate.release(6)
    third.wait(lambda job: job.status == "done")
    assert runner.order == [first.job, second.job, third.job]
    assert runner.most == 1
    assert first.job.views is VIEWS and (first.job.step, first.job.num_steps) == (3, 3)


def test_one_that_waits_leaves_the_line_when_cancelled(runner, queue):
    first = Watched(queue)
    first.wait(lambda job: job.status == "running")
    second, third = Watched(queue), Watched(queue)
    queue.cancel(second.job)
    second.wait(lambda job: job.status == "cancelled")
    third.wait(lambda job: job.ahead == 1)
    runner.gate.release(6)
    third.wait(lambda job: job.status == "done")
    assert second.job not in runner.order


def test_one_that_runs_ends_at_its_next_step_when_cancelled(runner, queue):
    first = Watched(queue)
    runner.gate.release()
    first.wait(lambda job: job.step == 1)
    queue.cancel(first.job)
    runner.gate.release()
    first.wait(lambda job: job.status == "cancelled")
    assert first.job.step == 1 and first.job.views is None


def test_too_long_a_line_is_refused_with_its_length(runner, queue):
    first = Watched(queue)
    first.wait(lambda job: job.status == "running")
    Watched(queue), Watched(queue)
    with pytest.raises(UserError, match="2 requests are waiting"):
        Watched(queue)


def test_a_job_ends_when_its_time_is_over():
    def endless(job):
        while True:
            job.report(1, 2)
            time.sleep(0.01)

    queue = JobQueue(endless, Limits(job_sec=0.05))
    watched = Watched(queue)
    watched.wait(lambda job: job.status == "cancelled")
    assert "longer than this page allows" in watched.job.message
    queue.close()


def test_a_failure_is_said_in_words_and_the_next_one_runs(caplog):
    outcomes = [UserError("pose 1 is mirrored"), ValueError("secret detail"), None]

    def run(job):
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return VIEWS

    queue = JobQueue(run, Limits())
    jobs = [Watched(queue) for _ in range(3)]
    jobs[2].wait(lambda job: job.status == "done")
    assert [watched.job.status for watched in jobs] == ["failed", "failed", "done"]
    assert jobs[0].job.message == "pose 1 is mirrored"
    assert "secret" not in jobs[1].job.message and "secret detail" in caplog.text
    queue.close()


def test_a_page_that_cannot_show_progress_does_not_stop_its_job(caplog):
    done = threading.Event()

    def show(job):
        if job.status == "done":
            done.set()
        raise RuntimeError("the browser is gone")

    queue = JobQueue(lambda job: VIEWS, Limits())
    queue.submit(request(), show)
    assert done.wait(20)
    queue.close()
    assert "browser is gone" in caplog.text


def test_closing_cancels_everything_and_refuses_more(runner):
    queue = JobQueue(runner, Limits())
    first = Watched(queue)
    first.wait(lambda job: job.status == "running")
    second = Watched(queue)
    runner.gate.release()
    closing = threading.Thread(target=queue.close)
    closing.start()
    second.wait(lambda job: job.status == "cancelled")
    runner.gate.release(2)
    closing.join(20)
    assert first.job.status == "cancelled"
    with pytest.raises(UserError, match="shutting down"):
        queue.submit(request(), lambda job: None)
