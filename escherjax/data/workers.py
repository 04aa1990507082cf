"""Processes that make batches ahead of time, in memory shared with the process that trains.

Decoding in threads takes the interpreter lock from the thread that hands steps to the device; in
processes it does not. The memory has no name in the file system and needs no room in /dev/shm:
however this process ends, nothing of it is left.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from escherjax.errors import UserError

# Gives an array of a shape and dtype to be filled, as np.empty does.
Allocate = Callable[[tuple[int, ...], Any], np.ndarray]
# Makes batch number n of arrays from `Allocate`.
Make = Callable[[int, Allocate], dict[str, np.ndarray]]

log = logging.getLogger("escherjax.data")

MOST_WORKERS = 16  # by default: enough for eight GPUs, and each takes memory
_HELD_SLOTS = 3  # batches that the caller may keep before it gets copies
_ALIGNMENT = 64  # bytes; what XLA needs to use an array in place
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Freed pictures stay with the process: each would cost hundreds of page faults otherwise.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}


def default_workers() -> int:
    """Two fewer than the cores this process may use, at most 16: 0, so threads, on two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_WORKERS, max(0, (cores or 1) - 2))


class WorkerPool:
    """Endless iterator over make(first), make(first + 1), ..., each made by one of the processes.

    A process that is killed is started again and makes its batches anew. Batches stay valid for as
    long as they are referred to. Not safe to use from several threads at once.
    """

    def __init__(self, make: Make, first: int, num_workers: int, waiting: int, slot_bytes: int):
        """Starts the processes.

        make: is pickled, and must give equal batches for equal numbers. waiting: batches that may
        be finished or in the making. slot_bytes: the most that `make` allocates, each array
        rounded up to 64 bytes.
        """
        self._next = self._unasked = first
        self._slot_bytes = slot_bytes
        self._num_slots = max(waiting, num_workers) + _HELD_SLOTS
        memory = _nameless_file(self._num_slots * slot_bytes)
        self._memory = mmap.mmap(memory, 0)
        self._free = collections.deque(range(self._num_slots))
        self._done: dict[int, tuple[int, dict[str, Any]]] = {}  # batch -> (slot, arrays' places)
        self._deaths = 0  # in a row, without a batch in between
        program, sizes = _stored(make)
        weakref.finalize(self, _close_all, (memory, program))
        self._arguments = (memory, slot_bytes, program, sizes)
        self._workers = [_Worker(*self._arguments) for _ in range(num_workers)]
        self._ask()

    def __iter__(self) -> WorkerPool:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._workers:  # closed
            raise StopIteration
        self._ask()
        while self._next not in self._done:
            ready = wait([worker.line for worker in self._workers])
            for worker in [worker for worker in self._workers if worker.line in ready]:
                self._receive(worker)
        slot, places = self._done.pop(self._next)
        self._next += 1
        return self._take(slot, places)

    def close(self) -> None:
        """Ends the processes."""
        while self._workers:
            self._workers.pop().end()

    def process_ids(self) -> list[int]:
        """Of the processes that make batches now."""
        return [worker.process.pid for worker in self._workers]

    def _ask(self) -> None:
        """Gives every free slot to the process with the least to do."""
        while self._free:
            worker = min(self._workers, key=lambda worker: len(worker.asked))
            worker.ask(self._unasked, self._free.popleft())
            self._unasked += 1

    def _receive(self, worker: _Worker) -> None:
        try:
            number, found = worker.line.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if isinstance(found, Exception):
            self.close()
            raise found
        self._deaths = 0
        self._done[number] = (worker.asked.pop(number), found)

    def _replace(self, worker: _Worker) -> None:
        """Starts a process in place of one that ended, and asks it for the same batches."""
        code = worker.end()
        self._deaths += 1
        if self._deaths > len(self._workers) + 2:
            self.close()
            raise UserError(
                f"the processes that read the data keep ending, the last with exit code {code} "
                "(-9: killed, often for memory). Set config.data.num_workers lower, or to 0 to "
                "read in threads."
            )
        log.warning("a process that reads the data ended with exit code %s: started again", code)
        new = _Worker(*self._arguments)
        for number, slot in worker.asked.items():
            new.ask(number, slot)
        self._workers[self._workers.index(worker)] = new

    def _take(self, slot: int, places: dict[str, Any]) -> dict[str, np.ndarray]:
        """A batch's arrays, in the slot itself, which is free once none of them is referred to."""
        root = np.frombuffer(self._memory, np.uint8, self._slot_bytes, slot * self._slot_bytes)
        weakref.finalize(root, self._free.append, slot).atexit = False
        batch = {
            name: place if isinstance(place, np.ndarray) else _part(root, *place)
            for name, place in places.items()
        }
        asked = sum(len(worker.asked) for worker in self._workers)
        if self._num_slots - len(self._free) - asked - len(self._done) > _HELD_SLOTS:
            return {name: array.copy() for name, array in batch.items()}
        return batch


class _Worker:
    """One process: the line to it, and the batches it was asked for, with their slots."""

    def __init__(self, memory: int, slot_bytes: int, program: int, sizes: list[int]):
        """Starts it; see `serve`."""
        self.line, theirs = multiprocessing.Pipe()
        self.asked: dict[int, int] = {}
        arguments = (theirs.fileno(), memory, slot_bytes, program, sizes)
        with theirs:
            # Not multiprocessing.Process: that runs the caller's script once more.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {__name__} import serve; serve{arguments}"],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory, program),
                start_new_session=True,  # a terminal's Ctrl-C is for the caller
                env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )

    def ask(self, number: int, slot: int) -> None:
        self.asked[number] = slot
        with contextlib.suppress(OSError):  # it ended, as the next receipt will notice
            self.line.send((number, slot))

    def end(self) -> int:
        """Ends the process; returns its exit code."""
        self.process.kill()
        self.line.close()
        return self.process.wait()


def serve(line: int, memory: int, slot_bytes: int, program: int, sizes: list[int]) -> None:
    """What a process does: makes the batches it is asked for until its parent is gone.

    line, memory, program: descriptors of the line to the parent, the slots, and what `_stored`
    wrote.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides: it saves first
    os.nice(19)
    connection = Connection(line)
    try:
        make = _loaded(program, sizes)
        _leave_with_parent(connection)
        slots = np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(-1, slot_bytes)
        while True:
            number, slot = connection.recv()
            connection.send((number, _make_into(slots[slot], make, number)))
    except (EOFError, ConnectionError):
        return
    except Exception:
        connection.send((None, RuntimeError(f"in a reading process: {traceback.format_exc()}")))


def _make_into(slot: np.ndarray, make: Make, number: int) -> dict[str, Any]:
    """Makes a batch in a slot; returns what `_part` needs for each array, or one that is outside.

    slot: uint8 [slot_bytes].
    """
    used = 0
    allocated: list[tuple[np.ndarray, tuple]] = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        nonlocal used
        array = _part(slot, used, shape, np.dtype(dtype))
        allocated.append((array, (used, shape, array.dtype)))
        used += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return array

    batch = make(number, allocate)
    places = {id(array): place for array, place in allocated}
    return {name: places.get(id(array), array) for name, array in batch.items()}


def _part(memory: np.ndarray, begin: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The array that lies in uint8 memory from byte `begin` on."""
    size = math.prod(shape) * dtype.itemsize
    return memory[begin : begin + size].view(dtype).reshape(shape)


def _leave_with_parent(line: Connection) -> None:
    """Ends this process once the other end of `line` is closed, whatever it is doing."""
    poll = select.poll()
    poll.register(line.fileno(), 0)  # nothing but the end, which is always reported

    def watch() -> None:
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _stored(make: Make) -> tuple[int, list[int]]:
    """(descriptor, sizes) of a file with `make` in it, and its large arrays, which are not copied.

    sizes: bytes of the pickle, then of each array.
    """
    import cloudpickle

    arrays: list[pickle.PickleBuffer] = []
    parts = [cloudpickle.dumps(make, 5, buffer_callback=arrays.append)]
    parts += [array.raw() for array in arrays]
    file = _nameless_file(0)
    for part in parts:
        with os.fdopen(os.dup(file), "ab") as out:
            out.write(part)
    return file, [len(part) for part in parts]


def _loaded(file: int, sizes: list[int]) -> Make:
    memory = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
    ends = np.cumsum(sizes).tolist()
    first, *arrays = (memory[end - size : end] for end, size in zip(ends, sizes, strict=True))
    return pickle.loads(first, buffers=arrays)


def _nameless_file(size: int) -> int:
    """Descriptor of a file in memory (on disk where the system has none) that has no name."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("escherjax-batches")
    else:
        with tempfile.TemporaryFile() as named:
            file = os.dup(named.fileno())
    os.truncate(file, size)
    return file


def _close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
