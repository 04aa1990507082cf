"""The unit of an import is a shard: read its scenes, write it, note it. Any process can do it.

A shard is written under another name first, and noted in OUT/.import when it is whole. What
is noted is never written again, so that an import stopped anywhere goes on from there, on one
machine or on many.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from escherjax.errors import TRACEBACK_VARIABLE, StoppedError, UserError

PROGRESS_FOLDER = ".import"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Item = TypeVar("Item")
Result = TypeVar("Result")
Tick = Callable[[int], Any]  # called with the number of scenes that were read


@dataclasses.dataclass(frozen=True)
class Imported:
    """A scene, and what the report should contain about it."""

    scene: Any  # escherjax.data.shards.Scene
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A scene that cannot be used, and why."""

    scene_id: str
    reason: str


# Reads the scenes at these places of the list of ids, and yields them in that order.
ReadScenes = Callable[[Sequence[int]], Iterator[Imported | Skipped]]
# A scene's id and whatever else finds the scene.
Found = tuple[str, *tuple[Any, ...]]


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yields function(item) of each item, in order, from threads that work ahead.

    At most 2 * threads results are kept waiting. The function must not import anything: a module
    that another thread is importing may replace `__import__` for the whole process meanwhile.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class SceneReader:
    """Reads scenes one by one in threads, in order; one that cannot be read is skipped.

    Decoding and resizing run outside Python's lock.

    Args:
        read_scene: (*item) -> Imported. An exception skips the scene, but for a `StoppedError` and
            a full disk.
        items: of every scene; only those of a shard are sent to the process that writes it, and
            they must pickle.
        workers: threads.
        modules: that `read_scene` imports late, where they are installed; imported before the
            threads start.
    """

    def __init__(
        self,
        read_scene: Callable[..., Imported],
        items: Sequence[Found],
        workers: int,
        modules: Sequence[str] = (),
    ):
        self.read_scene, self.items, self.workers = read_scene, items, workers
        self.modules = modules

    def part(self, places: Sequence[int]) -> SceneReader:
        """The reader of these scenes alone."""
        items = [self.items[place] for place in places]
        return SceneReader(self.read_scene, items, self.workers, self.modules)

    def __call__(self, places: Iterable[int]) -> Iterator[Imported | Skipped]:
        return self.read_items(self.items[place] for place in places)

    def read_items(self, items: Iterable[Found]) -> Iterator[Imported | Skipped]:
        """Reads other items than its own, which are taken from the iterator in this thread."""
        for name in self.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        return read_ahead(self._read_one, items, self.workers)

    def _read_one(self, item: Found) -> Imported | Skipped:
        try:
            return self.read_scene(*item)
        except Exception as error:
            place = next((str(part) for part in item[1:] if hasattr(part, "name")), item[0])
            return skip(item[0], error, place)


def skip(scene_id: str, error: Exception, place: str) -> Skipped:
    """The scene at a place as skipped, for whatever a broken file makes a library raise.

    Raises the error again if it is no fault of the scene: a `StoppedError` or a full disk.
    """
    if isinstance(error, StoppedError) or getattr(error, "errno", None) in NO_ROOM:
        raise error
    if isinstance(error, UserError):
        return Skipped(scene_id, str(error))
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    return Skipped(scene_id, f"{place} cannot be read: {type(error).__name__}: {error}")


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One shard to write: all that a process on any machine needs."""

    out: Path  # folder of the data set, the same on all machines
    split: str
    shard: int
    num_shards: int
    scene_ids: Sequence[str]
    read: ReadScenes
    places: Sequence[int]  # of the scenes, as `read` takes them

    @property
    def path(self) -> Path:
        """Where the shard will be."""
        from escherjax.data.shards import shard_path

        return shard_path(self.out, self.split, self.shard, self.num_shards)

    @property
    def note_file(self) -> Path:
        """Where the shard is noted once it is whole."""
        return self.out / PROGRESS_FOLDER / f"{self.split}-{self.shard:05d}.json"

    @property
    def is_done(self) -> bool:
        """Whether the shard is whole and noted."""
        return self.note_file.exists() and self.path.exists()

    def run(self, tick: Tick) -> None:
        """Writes the shard and its note: numbers of scenes, views and bytes, skipped, notes.

        Raises StoppedError if there is no room.
        """
        from escherjax import files
        from escherjax.data import shards

        _import_writer()
        note: dict[str, Any] = {"views": 0, "skipped": [], "notes": {}}

        def usable() -> Iterator[Any]:
            for result in self.read(self.places):
                tick(1)
                if isinstance(result, Imported):
                    result = _without_the_useless(result)
                if isinstance(result, Skipped):
                    note["skipped"].append(dataclasses.asdict(result))
                    continue
                note["views"] += result.scene.num_views
                if result.notes:
                    note["notes"][result.scene.scene_id] = result.notes
                yield result.scene

        with no_room_stops(self.out):
            note["scenes"] = shards.write_shard(self.path, usable())
            note["bytes"] = files.file_size(self.path)
            write_json(self.note_file, note)


def _import_writer() -> None:
    """Imports everything that writing a scene takes, while there are no threads.

    TensorFlow Datasets replaces the process's `__import__` while it imports parts of itself, which
    it does when they are first used; an import in another thread then fails.
    """
    import numpy as np
    from PIL import Image

    from escherjax.data import images, shards

    Image.init()
    picture = images.encode_png(np.zeros((1, 1, 4), np.uint8))
    c2w, K = np.eye(4, dtype=np.float32)[None], np.eye(3, dtype=np.float32)[None]
    shards.encode_scene(shards.Scene("", "", [picture], c2w, K, height=1, width=1))


def _without_the_useless(imported: Imported) -> Imported | Skipped:
    """Skips a valid scene whose views are all from one place; notes one that has a single view."""
    scene = imported.scene
    if scene.num_views == 1:
        return dataclasses.replace(imported, notes={**imported.notes, "warning": "has one view"})
    if (scene.c2w == scene.c2w[0]).all():
        reason = f"all {scene.num_views} views have the same pose; expected different ones."
        return Skipped(scene.scene_id, reason)
    return imported


def run_pending(
    tasks: Sequence[ShardTask],
    description: str,
    run: Callable[[Sequence[ShardTask], Tick], None] | None = None,
) -> None:
    """Runs the tasks that are not done, with a progress bar; by default one after another here."""
    from tqdm import tqdm

    total = sum(len(task.places) for task in tasks)
    pending = [task for task in tasks if not task.is_done]
    with tqdm(total=total, desc=description, unit="scene", mininterval=1) as bar:
        bar.update(total - sum(len(task.places) for task in pending))
        (run or run_here)(pending, bar.update)


def run_here(tasks: Sequence[ShardTask], tick: Tick) -> None:
    """Runs tasks one after another in this process."""
    for task in tasks:
        task.run(tick)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    from escherjax.files import whole_file

    with whole_file(path) as file:
        file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def no_room_stops(out: Path) -> Iterator[None]:
    """Makes a full disk or quota a StoppedError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise StoppedError(
            f"no room to write {out} ({error.strerror}). Finished shards are kept; make room and "
            "give the same command again to go on."
        ) from error


@dataclasses.dataclass
class _Worker:
    """A process that writes one shard, and how many of its scenes were read."""

    task: ShardTask
    process: Any
    read: int = 0

    def obituary(self) -> str:
        """How the process died."""
        task, code = self.task, self.process.exitcode
        how = f"exit code {code}, its message is above"
        if code < 0:
            how = f"killed by {signal.Signals(-code).name}"
            how += ", as by a machine out of memory" if code == -signal.SIGKILL else ""
        # Threads read ahead, so that what is to be written next is only near the scene at fault.
        known = self.read < len(task.scene_ids)
        near = f", near '{task.scene_ids[self.read]}'" if known else ""
        return (
            f"the process that wrote {task.path.name} died ({how}) after {self.read} of its "
            f"{len(task.scene_ids)} scenes{near}"
        )


def run_in_processes(tasks: Sequence[ShardTask], processes: int, tick: Tick) -> None:
    """Runs every task in a new process, so many at a time.

    Where a process dies, the others go on; the pools of concurrent.futures and loky would give up
    all of them. Raises StoppedError naming the shards of those that died, and whatever UserError
    or StoppedError a task raised, after those already running.
    """
    import cloudpickle

    context = multiprocessing.get_context("spawn")
    waiting = collections.deque(tasks)
    running: dict[Any, _Worker] = {}
    died: list[str] = []
    errors: list[Exception] = []
    try:
        while running or (waiting and not errors):
            while waiting and len(running) < processes and not errors:
                task = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                arguments = (cloudpickle.dumps(task), sender)
                process = context.Process(target=_run_pickled, args=arguments, daemon=True)
                process.start()
                sender.close()  # the process holds the only other end: it closes when that dies
                running[receiver] = _Worker(task, process)
            ready: list[Any] = multiprocessing.connection.wait(list(running))
            for receiver in ready:
                worker = running[receiver]
                try:
                    message = receiver.recv()
                except (EOFError, OSError):
                    del running[receiver]
                    receiver.close()
                    worker.process.join()
                    if worker.process.exitcode:
                        died.append(worker.obituary())
                    continue
                if isinstance(message, Exception):
                    errors.append(message)
                else:
                    worker.read += message
                    tick(message)
    finally:
        for worker in running.values():
            worker.process.terminate()
            worker.process.join()
    if errors:
        raise errors[0]
    if died:
        raise StoppedError(
            f"{'; '.join(died)}. The other shards are whole and kept. Give the same command again "
            "to write what is missing, with fewer --workers if memory ran out."
        )


def _run_pickled(data: bytes, sender: Any) -> None:
    import cloudpickle

    try:
        cloudpickle.loads(data).run(sender.send)
    except (UserError, StoppedError) as error:
        sender.send(error)
    except KeyboardInterrupt:
        sys.exit(1)
