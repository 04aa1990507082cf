"""JSON objects from files nobody vouches for: nothing is repeated, infinite or endless."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 100_000_000  # also the limit that the safetensors format sets for its header


def parse_object(content: bytes) -> dict[str, Any]:
    """The object in UTF-8 JSON text; ValueError with the reason for anything else.

    Python's own reader lets the last of two equal names win, and takes NaN and Infinity, which are
    no JSON: all three are refused here, repeated names all at once.
    """
    repeated: list[str] = []

    def members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in pairs:
            if name in fields:
                repeated.append(shown(name))
            fields[name] = value
        return fields

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON number")

    try:
        parsed = json.loads(
            content.decode("utf-8"), object_pairs_hook=members, parse_constant=constant
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if repeated:
        raise ValueError(f"it repeats the names {', '.join(sorted(set(repeated)))}")
    if not isinstance(parsed, dict):
        raise ValueError("needed a JSON object with fields")
    return parsed


def read_object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The object in a JSON file; None, with a problem added, where there is none."""
    try:
        if path.exists() and not path.is_file():
            problems.append(f"{path}: is not a file")
            return None
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror})")
        return None
    if len(content) > MAX_BYTES:
        problems.append(f"{path}: is larger than {MAX_BYTES} bytes")
        return None
    try:
        fields = parse_object(content)
        if not fields:
            raise ValueError("needed a JSON object with fields")
    except ValueError as error:
        problems.append(f"{path}: is not usable JSON ({error})")
        return None
    return fields


def read_optional(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The same of a file that need not be there."""
    return read_object(path, problems) if path.exists() else None


def shown(name: Any) -> str:
    """A name from a file as it can be printed: on one line, without control characters, short."""
    return _short(name) if isinstance(name, str) and name.isprintable() else quoted(name)


def quoted(value: Any) -> str:
    """A value from a file as it would stand in a program, ASCII, short."""
    return _short(ascii(value))


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
