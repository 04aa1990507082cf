"""The environment that Blender's `bpy` package lives in, and running the renderer there.

bpy needs an older NumPy and one exact Python, so it is never a dependency: the first use makes
`~/.cache/escherjax/bpy-VERSION` (`XDG_CACHE_HOME` is respected). An environment appears under that
name only when it is whole; what a stopped installation leaves behind is removed by the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from escherjax.errors import UserError

BPY_VERSION = "5.0.1"
REQUIREMENTS = (f"bpy=={BPY_VERSION}", "numpy<2")
PYTHON_VERSION = (3, 11)  # the only one that this bpy has wheels for
RENDERER = Path(__file__).with_name("render.py")
PROBE_TIMEOUT_S = 300  # the first import reads 800 MB, perhaps from a network disk
DEBIAN_PACKAGES = (
    "libx11-6 libxrender1 libxfixes3 libxi6 libxkbcommon0 libsm6 libice6 libgl1"  # headless too
)


def environment_folder() -> Path:
    """Where the environment of this version of bpy lies, or will lie."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "escherjax" / f"bpy-{BPY_VERSION}"


def blender_python(given: Path | None = None) -> Path:
    """A Python that can import bpy: `given`, or that of our environment, made where missing.

    Raises UserError if there is none and it cannot be made.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(
                f"--blender-python {given} is not a file; expected a Python that has bpy."
            )
        return given
    folder = environment_folder()
    if not folder.is_dir():
        _make_environment(folder)
    return folder / "bin" / "python"


def _make_environment(folder: Path) -> None:
    """Makes the environment beside `folder` and renames it when Blender starts in it."""
    base = _base_python()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another command may be making the same
        if folder.is_dir():
            return
        shutil.rmtree(partial, ignore_errors=True)
        print(f"installing {' '.join(REQUIREMENTS)} to {folder} (1 GB, once)", file=sys.stderr)
        python = str(partial / "bin" / "python")
        for command in (
            [base, "-m", "venv", str(partial)],
            [python, "-m", "pip", "install", "--quiet", *REQUIREMENTS],
        ):
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=_clean_environment()
            )
            if done.returncode:
                shutil.rmtree(partial, ignore_errors=True)
                raise UserError(
                    f"the environment for Blender cannot be made: {' '.join(command)} ended with "
                    f"{done.returncode}: {_tail(done.stderr)}\nIt needs a package registry that "
                    f"has {REQUIREMENTS[0]} (1 GB). Without one, install bpy for Python "
                    f"{_dotted(PYTHON_VERSION)} yourself and give --blender-python PATH."
                )
        probe(Path(python))
        partial.rename(folder)


def _base_python() -> str:
    """A Python of the version that bpy needs."""
    if sys.version_info[:2] == PYTHON_VERSION:
        return sys.executable
    name = f"python{_dotted(PYTHON_VERSION)}"
    found = shutil.which(name)
    if found is None:
        raise UserError(
            f"Blender {BPY_VERSION} needs Python {_dotted(PYTHON_VERSION)}, this is "
            f"{_dotted(sys.version_info[:2])} and there is no {name} on the PATH; install it, or "
            "give --blender-python PATH, a Python that has bpy."
        )
    return found


def probe(python: Path) -> dict[str, Any]:
    """What Blender is there: {"version": text, "gpus": names of the devices Cycles can use}.

    Raises UserError if bpy cannot be imported.
    """
    with tempfile.TemporaryDirectory(prefix="escherjax-blender-") as folder:
        answer = Path(folder) / "probe.json"
        try:
            log, code = _run(python, ["--probe", str(answer)], PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{python} did not start Blender in {PROBE_TIMEOUT_S} s.") from error
        if code or not answer.exists():
            raise UserError(
                f"{python} cannot start Blender ({describe_exit(code)}): {_tail(log)}\nIt needs "
                f"the package bpy and the system's libraries; on Debian: {DEBIAN_PACKAGES}."
            )
        return json.loads(answer.read_text())


def render_object(python: Path, job: dict[str, Any], folder: Path, timeout_s: float) -> dict:
    """Runs the renderer on one object in a process of its own; see render.py for job and answer.

    folder: existing and empty; the renderer writes its pictures there. Raises UserError if the
    object is unusable, the process dies, or it is not done in `timeout_s` seconds.
    """
    (folder / "job.json").write_text(json.dumps(job))
    answer = folder / "answer.json"
    try:
        log, code = _run(python, [str(folder)], timeout_s)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"was not rendered in {timeout_s:g} s (--timeout); Blender was stopped."
        ) from error
    if code or not answer.exists():
        raise UserError(f"Blender ended without an answer ({describe_exit(code)}): {_tail(log)}")
    content = json.loads(answer.read_text())
    if "error" in content:
        raise UserError(content["error"])
    return content


def describe_exit(code: int) -> str:
    """'exit status 3', or the name of the signal that ended a process."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def _run(python: Path, arguments: list[str], timeout_s: float) -> tuple[str, int]:
    """(output, exit status) of the renderer."""
    done = subprocess.run(
        [str(python), "-s", str(RENDERER), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_clean_environment(),
        timeout=timeout_s,
    )
    return done.stdout, done.returncode


def _clean_environment() -> dict[str, str]:
    """The environment variables without those that show Python our own packages."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def _tail(text: str, lines: int = 5) -> str:
    kept = [line for line in text.strip().splitlines() if line.strip()][-lines:]
    return " | ".join(kept)[-1000:] or "it printed nothing"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
