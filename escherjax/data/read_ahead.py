"""Computes results ahead in threads and gives them in order."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, num_ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Applies a function to items in threads.

    Args:
      function: may run in several threads at once; what it raises ends the iteration.
      items: read as far as they are worked on.
      workers: number of threads.
      num_ahead: results that may wait for the reader, so that memory stays bounded.

    Yields:
      (item, result), in the order of the items.
    """
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque = collections.deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > num_ahead:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
