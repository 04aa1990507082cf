"""Reads JSON objects from untrusted files: no repeated names, no NaN, no endless input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MAX_BYTES = 100_000_000


def parse_object(content: bytes) -> dict[str, Any]:
    """The object in UTF-8 JSON text; ValueError with the reason for anything else.

    Python's own reader lets the last of two equal names win and takes NaN and Infinity, which are
    not JSON: all three are refused here, repeated names all at once.
    """
    repeated: set[str] = set()

    def members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in pairs:
            if name in fields:
                repeated.add(printable(name))
            fields[name] = value
        return fields

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        parsed = json.loads(
            content.decode("utf-8"), object_pairs_hook=members, parse_constant=constant
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if repeated:
        raise ValueError(f"it repeats the names {', '.join(sorted(repeated))}")
    if not isinstance(parsed, dict) or not parsed:
        raise ValueError("expected a JSON object with fields")
    return parsed


def read_object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The object in a JSON file; None, with a problem added, where there is none."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        return parse_object(content)
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror})")
    except ValueError as error:
        problems.append(f"{path}: is not usable JSON ({error})")
    return None


def read_optional(path: Path, problems: list[str]) -> dict[str, Any]:
    """The same of a file that need not exist; empty where there is none."""
    return (read_object(path, problems) if path.exists() else None) or {}


def printable(text: str) -> str:
    """Text from a file as it can be printed: on one line, without control characters, short."""
    return _short(text) if text.isprintable() else quoted(text)


def quoted(value: Any) -> str:
    """A value from a file as it would stand in a program, ASCII, short."""
    return _short(ascii(value))


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
