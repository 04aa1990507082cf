"""Files that are whole or absent: written under another name, then renamed.

A path is a pathlib.Path, or an etils.epath.Path for an address such as gs://bucket/folder, which
needs the fsspec package of that address (gcsfs, s3fs).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is an address (gs://bucket/folder), not a place in the local file system."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a local path to write to; what was written stands at `path` once nothing was raised.

    Of the file nothing is left otherwise. Names in between are new each time and end in ".tmp", so
    that two writers of one file do no harm.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    if not is_remote(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return
    from etils import epath

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        yield local
        epath.Path(local).copy(temporary)
    temporary.replace(path)


def file_size(path: Path) -> int:
    """Bytes of a file, local or not."""
    from etils import epath

    return epath.Path(path).stat().length
