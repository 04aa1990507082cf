"""What the JSON files beside shards say: splits, shards, and how TFDS decodes a record."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from escherjax.data import remote
from escherjax.errors import UserError
from escherjax.files import is_remote

COMPLETE_FILE = "dataset_info.json"  # written last: where it is, the data set is whole
FEATURES_FILE = "features.json"


def read_metadata(folder: str | Path) -> tuple[dict[str, list[int]], Any]:
    """(scenes in each shard of each split, TFDS builder) of a folder or an address.

    Raises UserError if there is no whole data set, or the files are damaged.
    """
    import tensorflow_datasets as tfds

    with contextlib.ExitStack() as stack:
        if is_remote(folder):
            files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for name in (COMPLETE_FILE, FEATURES_FILE):
                content = remote.read_file(folder, name)
                if content is not None:
                    (files / name).write_bytes(content)
        else:
            files = Path(folder)
        if not (files / COMPLETE_FILE).exists():
            raise UserError(
                f"{folder} is no whole data set: it has no {COMPLETE_FILE}. Give the folder that a "
                "data_prep command made; if one was stopped, start it again and it goes on."
            )
        with naming_damage(folder):
            info = json.loads((files / COMPLETE_FILE).read_text())
            lengths = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
            return lengths, tfds.builder_from_directory(files)


@contextlib.contextmanager
def naming_damage(folder: str | Path) -> Iterator[None]:
    """Makes what TFDS raises for metadata that it cannot follow a UserError."""
    from google.protobuf import json_format

    try:
        yield
    except (
        json_format.Error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
    ) as error:
        raise UserError(
            f"{COMPLETE_FILE} or {FEATURES_FILE} of {folder} is damaged "
            f"({type(error).__name__}: {str(error)[:200]}); copy them again."
        ) from error


def split_names(folder: str | Path) -> list[str]:
    """The splits of a data set that have scenes. Raises UserError as `read_metadata`."""
    return [split for split, lengths in read_metadata(folder)[0].items() if sum(lengths)]
