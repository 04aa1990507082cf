"""The training command in a process of its own."""

import os
import subprocess
import sys

from tests.helpers.patience import PATIENCE_SEC, wait_until
from tests.helpers.tiny import tiny_arguments

LONG_RUN = {"num_steps": 60, "checkpoint_every_steps": 10, "log_every_steps": 5}


def one_device_environment(cache):
    """One device, and a compilation cache that several runs share."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }


def arguments(workdir, **changes):
    return [
        "--config",
        "configs/6dof.py:smoke",
        "--workdir",
        str(workdir),
        *tiny_arguments(**{**LONG_RUN, **changes}),
    ]


def start(workdir, environment, **changes):
    command = [sys.executable, "-m", "escherjax.train", *arguments(workdir, **changes)]
    return launch(command, environment)


def launch(command, environment):
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE_SEC)
    return process.returncode, output


def wait_for(path, process):
    wait_until(
        path.exists,
        lambda: process.poll() is not None and f"it ended with {process.communicate()[0]}",
    )
