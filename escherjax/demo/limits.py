"""Bounds on what one visitor may send and ask for, and file names made safe to show."""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the web page; every one is checked on the server, whatever a browser sends."""

    upload_bytes: int = 20 * 2**20  # of one file
    picture_pixels: int = 50_000_000  # of one picture
    references: int = 12  # pictures of one visitor
    targets: int = 48  # views of one request
    viewpoints: int = 24  # of a visitor's own path
    steps: int = 100  # sampling steps of one request
    job_sec: float = 900.0  # from the start of a request, its compilation included
    waiting: int = 8  # requests in the queue, not counting the running one
    visitors: int = 16  # pages open at a time


def safe_label(name: str, most: int = 40) -> str:
    """Returns a client's file name as text to show: no folders, no control characters, short."""
    base = re.split(r"[/\\]", name)[-1]
    kept = "".join(c for c in base if unicodedata.category(c)[0] not in "CZ" or c == " ").strip()
    if len(kept) > most:
        stem, suffix = os.path.splitext(kept)
        suffix = suffix[:8]
        kept = stem[: most - 1 - len(suffix)] + "…" + suffix
    return kept or "unnamed"
