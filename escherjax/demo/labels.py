"""Names that visitors' files have, as text to show."""

from __future__ import annotations

import os
import re
import unicodedata


def safe_label(name: str, most: int = 40) -> str:
    """A client's file name as text to show: no folders, no control characters, not long."""
    base = re.split(r"[/\\]", name)[-1]
    kept = "".join(c for c in base if unicodedata.category(c)[0] not in "CZ" or c == " ").strip()
    if len(kept) > most:
        stem, suffix = os.path.splitext(kept)
        suffix = suffix[:8]
        kept = stem[: most - 1 - len(suffix)] + "…" + suffix
    return kept or "unnamed"
