"""Named TPU topologies without TPUs: libtpu describes their devices to the compiler."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from escherjax.devices.chips import CHIPS, Chip
from escherjax.errors import UserError

FORM = "GENERATION:AxB or GENERATION:AxBxC, such as v5e:16x16 or v5p:4x4x4"


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """(chip, chips along each dimension of the torus) of a topology's name.

    Raises UserError for a name of another form or an unknown generation.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not match:
        raise UserError(f"--topology {name!r} is no topology; needed {FORM}.")
    generation, shape = match[1], tuple(int(size) for size in match[2].split("x"))
    if generation not in CHIPS:
        raise UserError(
            f"--topology {name!r}: unknown generation {generation!r}; known: {', '.join(CHIPS)}."
        )
    needed = 3 if generation in ("v4", "v5p") else 2
    if len(shape) != needed or 0 in shape:
        host = f"{generation}:{'x'.join('221'[:needed])}"
        raise UserError(
            f"--topology {name!r}: {generation} is a torus of {needed} dimensions; needed "
            f"{host}, which is one host, or a multiple of it along each, such as "
            f"{generation}:{'x'.join('444'[:needed])}."
        )
    return CHIPS[generation], shape


def prepare_environment() -> None:
    """Lets libtpu load on a machine without TPUs; call it before JAX is imported.

    Without these variables libtpu asks the cloud's metadata server who it is, and a second process
    would wait for the first one's lock.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def topology_devices(name: str) -> Sequence[Any]:
    """The devices of a topology, to compile for and not to run on.

    Raises UserError if libtpu is missing or does not know the topology.
    """
    chip, _ = parse_topology(name)
    from jax.experimental import topologies

    # Both cores of a v4 chip are one device, as on the real ones; by default libtpu makes them two.
    options = {"chip_config_name": "megacore"} if chip is CHIPS["v4"] else {}
    try:
        return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except Exception as error:  # jaxlib raises several kinds, of which none is public
        if "TPU support not installed" in str(error):
            raise UserError(
                "libtpu is not installed, and it holds the compiler; run "
                "pip install 'escherjax[tpu]' (no TPU is needed)."
            ) from error
        raise UserError(f"--topology {name!r}: libtpu does not know it ({error}).") from error
