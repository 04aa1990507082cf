"""Describes the devices of a named TPU topology to the compiler, through libtpu alone."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from escherjax.devices.chips import CHIPS, Chip
from escherjax.errors import UserError

FORM = "GENERATION:AxB or GENERATION:AxBxC, such as v5e:16x16 or v5p:4x4x4"


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns (chip, chips along each dimension of the torus) of a topology's name.

    Raises UserError for a name of another form or an unknown generation.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not match:
        raise UserError(f"--topology must be {FORM}; got {name!r}.")
    generation, shape = match[1], tuple(int(size) for size in match[2].split("x"))
    if generation not in CHIPS:
        raise UserError(
            f"--topology {name!r}: the generation must be one of {', '.join(CHIPS)}, got "
            f"{generation!r}."
        )
    needed = 3 if generation in ("v4", "v5p") else 2
    if len(shape) != needed or 0 in shape:
        host = f"{generation}:{'x'.join('221'[:needed])}"
        raise UserError(
            f"--topology {name!r}: {generation} is a torus of {needed} dimensions; expected "
            f"{host}, which is one host, or a multiple of it along each, such as "
            f"{generation}:{'x'.join('444'[:needed])}."
        )
    return CHIPS[generation], shape


def prepare_environment() -> None:
    """Lets libtpu load on a machine without TPUs; call it before JAX is imported.

    Without these variables libtpu queries the cloud's metadata server, and a second process waits
    for the first one's lock.
    """
    variables = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-256",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def topology_devices(name: str) -> Sequence[Any]:
    """Returns the devices of a topology, to compile for but not to run on.

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
