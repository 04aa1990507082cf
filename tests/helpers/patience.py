"""How tests wait for other threads and processes: a hang ends them, never a busy machine."""

import time
from collections.abc import Callable

# Far beyond what any step takes at any load; a test that waits this long hangs.
PATIENCE_SEC = 3600.0


def wait_until(condition: Callable[[], object], failure: Callable[[], object] = lambda: None):
    """Waits until the condition holds, or stops with what `failure` returns, if anything."""
    end = time.monotonic() + PATIENCE_SEC
    while not condition():
        assert not (failed := failure()), failed
        assert time.monotonic() < end, "nothing happened for an hour"
        time.sleep(0.01)
