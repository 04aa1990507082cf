"""Whether all hosts of a run were started alike, asked before they compute anything together."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ml_collections import ConfigDict

from escherjax import config as config_lib
from escherjax.devices import hosts
from escherjax.errors import UserError
from escherjax.weights import runs


def check(config: ConfigDict) -> None:
    """Raises UserError on all hosts, naming what differs, unless config and code are the same."""
    mine = {
        "config": config_lib.to_json(config),
        "code": {"commit": runs.commit(), "source": _digest(), **runs.versions()},
    }
    first, *others = hosts.gather("config and code", mine)
    lines = []
    for host, other in enumerate(others, 1):
        old, new = (config_lib.from_json(said["config"]) for said in (first, other))
        differ = [f"config.{line}" for line in config_lib.differences(old, new, ignored=())]
        before, after = first["code"], other["code"]
        differ += [
            f"{name} of the code: {before[name]!r} -> {after[name]!r}"
            for name in before
            if before[name] != after[name]
        ]
        lines += [f"host 0 -> host {host}, {line}" for line in differ]
    if lines:
        listed = "\n  ".join(lines)
        raise UserError(
            f"the hosts of this run were started with different configs or code:\n  {listed}\n"
            "Nothing was started. Bring the same code to all hosts, and give all the same command."
        )


def _digest() -> str:
    """A hash of the package's source files, for changes that no commit tells."""
    package = Path(config_lib.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
