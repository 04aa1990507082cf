"""The training command in a process of its own."""

import os
import subprocess
import sys
import time

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
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
