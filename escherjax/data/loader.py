"""Batches of reference and target views from scene records, through Grain.

The position in the data follows from the step alone: step s with global batch G holds rows
s*G .. (s+1)*G - 1 of one endless order of scenes, the view counts of a step are drawn from
(seed, s) and the views of a row from a generator keyed by (seed, row). Host p of P holds rows
p*G/P .. (p+1)*G/P - 1 of each batch, so any number of hosts together see the same batches, and a
run continues at any step on any number of hosts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import grain.python as grain
import numpy as np

from escherjax.data import mixture, workers
from escherjax.data.batch import Batch
from escherjax.data.loader_config import LoaderConfig
from escherjax.data.rows import DrawRow, HostBatches, SceneSource, row_bytes
from escherjax.errors import UserError


class BatchIterator:
    """Endless iterator over this host's part of each global batch; see `make_loader`.

    bad_records: (scene id, reason) of every bad record in the batches given out so far, a record
    again each time it comes.
    """

    def __init__(self, iterator: Iterator[dict[str, np.ndarray]], on_bad_record: str):
        self._iterator, self._on_bad_record = iterator, on_bad_record
        self.bad_records: list[tuple[str, str]] = []

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        errors = batch.pop("error")
        for scene_id, reason in zip(batch["scene_ids"], errors, strict=True):
            if reason is not None:
                if self._on_bad_record == "stop":
                    raise UserError(
                        f"bad record '{scene_id}': {reason} Mend or remove it, or set "
                        "on_bad_record to 'skip' to leave its row out."
                    )
                self.bad_records.append((scene_id, reason))
        return Batch(**batch)

    def process_ids(self) -> list[int]:
        """Of the reading processes; [] where threads read."""
        return self._iterator.process_ids() if hasattr(self._iterator, "process_ids") else []

    def close(self) -> None:
        """Stops the reading threads or processes."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def make_loader(
    source: SceneSource,
    config: LoaderConfig,
    global_batch: int,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    num_threads: int | None = None,
    prefetch: int | None = None,
    num_workers: int = 0,
) -> BatchIterator:
    """Batches of `source` from step `start_step` on, without end.

    num_workers: processes that read and decode, each making whole batches; -1:
    `workers.default_workers`. Batches do not depend on it. 0, and sources that lie in memory:
    threads. num_threads: by default one for each core, at most 16. prefetch: batches that may
    wait, at least num_workers or num_threads; memory is prefetch times a batch.

    Each batch holds global_batch / process_count scenes, and the most references and the targets
    of its step's bucket as N and M.
    Raises UserError if the numbers do not fit together.
    """
    config.validate()
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index {process_index} of {process_count} processes.")
    if global_batch < 1 or global_batch % process_count:
        raise UserError(
            f"the global batch of {global_batch} does not divide over {process_count} processes; "
            f"take a multiple of {process_count}."
        )
    if start_step < 0:
        raise UserError(f"start_step must be at least 0, got {start_step}.")
    parts = {"the data source": source}
    if isinstance(source, mixture.Mixture):
        parts = dict(zip(source.names, source.sources, strict=True))
    for name, part in parts.items():
        if len(part) < 1:
            raise UserError(f"{name} has no scenes.")
        if hasattr(part, "num_views"):
            config.check_views(part.num_views, f"every scene of {name}")
    batches = host_batches(source, config, global_batch, process_index, process_count)
    if num_workers and getattr(source, "reads_files", False):
        count = workers.default_workers() if num_workers < 0 else num_workers
        if count:
            rows = global_batch // process_count
            most = rows * max(row_bytes(config, bucket) for bucket in config.all_buckets)
            pool = workers.WorkerPool(batches, start_step, count, prefetch or 0, most)
            return BatchIterator(pool, config.on_bad_record)
    threads = min(16, os.cpu_count() or 1) if num_threads is None else num_threads
    waiting = threads if prefetch is None else max(prefetch, threads)
    numbers = grain.MapDataset.range(start_step, sys.maxsize).map(batches)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=waiting)
    return BatchIterator(iter(numbers.to_iter_dataset(options)), config.on_bad_record)


def host_batches(
    source: SceneSource,
    config: LoaderConfig,
    global_batch: int,
    process_index: int,
    process_count: int,
) -> HostBatches:
    """The batches of `make_loader`, as dicts, each by its number."""
    # Scene numbers rather than scenes run through Grain, so that a read error stays with its row.
    rows = mixture.endless_order(source, config.seed, config.shuffle)
    rows = rows.map_with_index(lambda row, index: (row // global_batch, int(index)))
    rows = rows.random_map(DrawRow(source, config), seed=_draw_seed(config))
    return HostBatches(rows, global_batch // process_count, process_index, process_count)


def _draw_seed(config: LoaderConfig) -> int:
    """Seed of what is drawn within rows.

    Grain's own would follow from a stage's depth in the pipeline and change with every new stage;
    the second word is the depth that Grain counted in pipelines without view counts by step.
    """
    words = (config.seed, 3 if config.shuffle else 2)
    return int(np.random.SeedSequence(words).generate_state(1)[0])
