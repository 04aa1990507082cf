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
import json
import multiprocessing
import multiprocessing.connection
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from escherjax.errors import StoppedError, UserError

PROGRESS_FOLDER = ".import"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Imported:
    """A scene, and what the report should say about it."""

    scene: Any  # escherjax.data.shards.Scene
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A scene that cannot be used, and why."""

    scene_id: str
    reason: str


# Reads the scenes at these places of the list of ids, and yields them in that order.
ReadScenes = Callable[[Sequence[int]], Iterator[Imported | Skipped]]


class SceneReader:
    """Reads scenes one by one in threads, in order; a UserError skips its scene.

    read_scene: (*item) -> Imported. items: for every scene its id and whatever else finds it; only
    those of a shard are sent to the process that writes it, and they must pickle.
    Decoding and resizing run outside Python's lock. At most 2 * workers scenes are kept waiting.
    """

    def __init__(
        self,
        read_scene: Callable[..., Imported],
        items: Sequence[tuple[str, *tuple[Any, ...]]],
        workers: int,
    ):
        self.read_scene, self.items, self.workers = read_scene, items, workers

    def part(self, places: Sequence[int]) -> SceneReader:
        """The reader of these scenes alone."""
        return SceneReader(self.read_scene, [self.items[place] for place in places], self.workers)

    def __call__(self, places: Sequence[int]) -> Iterator[Imported | Skipped]:
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            waiting = collections.deque()
            for place in places:
                waiting.append(pool.submit(self._read_one, self.items[place]))
                if len(waiting) >= 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _read_one(self, item: tuple[str, *tuple[Any, ...]]) -> Imported | Skipped:
        try:
            return self.read_scene(*item)
        except UserError as error:
            return Skipped(item[0], str(error))


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One shard to write: all that a process on any machine needs to know.

    out: folder of the data set, the same on all machines; read: of the scenes at `places`.
    """

    out: Path
    split: str
    shard: int
    num_shards: int
    scene_ids: Sequence[str]
    read: ReadScenes
    places: Sequence[int]

    @property
    def path(self) -> Path:
        from escherjax.data.shards import shard_path

        return shard_path(self.out, self.split, self.shard, self.num_shards)

    @property
    def note_file(self) -> Path:
        return self.out / PROGRESS_FOLDER / f"{self.split}-{self.shard:05d}.json"

    def run(self, tick: Callable[[int], Any]) -> None:
        """Writes the shard and its note: numbers of scenes, views and bytes, skipped, notes.

        tick: called with 1 for each scene read. Raises StoppedError if there is no room.
        """
        from escherjax import files
        from escherjax.data import shards

        note: dict[str, Any] = {"views": 0, "skipped": [], "notes": {}}

        def usable():
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


def _without_the_useless(imported: Imported) -> Imported | Skipped:
    """Skips a valid scene that shows nothing from elsewhere; notes one that barely does."""
    scene = imported.scene
    if scene.num_views == 1:
        return dataclasses.replace(imported, notes={**imported.notes, "warning": "has one view"})
    if (scene.c2w == scene.c2w[0]).all():
        reason = f"all {scene.num_views} views have the same pose; needed different ones."
        return Skipped(scene.scene_id, reason)
    return imported


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


def run_in_processes(
    tasks: Sequence[ShardTask], processes: int, tick: Callable[[int], Any]
) -> None:
    """Runs every task in a new process, so many at a time.

    Where a process dies, the others go on. Raises StoppedError naming the shards of those that
    died, and whatever UserError or StoppedError a task raised, after those already running.
    """
    import cloudpickle

    context = multiprocessing.get_context("spawn")
    waiting = collections.deque(tasks)
    running: dict[Any, tuple[ShardTask, Any]] = {}
    done: collections.Counter = collections.Counter()
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
                running[receiver] = task, process
            for receiver in multiprocessing.connection.wait(list(running)):
                task, process = running[receiver]
                try:
                    message = receiver.recv()
                except (EOFError, OSError):
                    del running[receiver]
                    receiver.close()
                    process.join()
                    if process.exitcode:
                        died.append(_obituary(task, done[task.path], process.exitcode))
                    continue
                if isinstance(message, Exception):
                    errors.append(message)
                else:
                    done[task.path] += message
                    tick(message)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
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


def _obituary(task: ShardTask, read: int, exit_code: int) -> str:
    how = f"exit code {exit_code}, its message is above"
    if exit_code < 0:
        how = f"killed by {signal.Signals(-exit_code).name}"
        how += ", as by a machine out of memory" if exit_code == -signal.SIGKILL else ""
    # Threads read ahead, so that what is to be written next is only near the scene at fault.
    near = f", near '{task.scene_ids[read]}'" if read < len(task.scene_ids) else ""
    return (
        f"the process that wrote {task.path.name} died ({how}) after {read} of its "
        f"{len(task.scene_ids)} scenes{near}"
    )
