"""A work directory as a tiny run leaves it, without running."""

import jax
import numpy as np

from escherjax.devices import mesh
from escherjax.models import eschernet
from escherjax.train.state import create_state
from escherjax.weights import runs
from tests.helpers.tiny import tiny_config


def write_workdir(folder, **changes):
    """A work directory with checkpoints 2 and 4, whose raw and averaged parameters all differ."""
    config = tiny_config(**changes)
    runs.prepare_workdir(folder, config)
    model = eschernet.from_config(config)
    state = create_state(model, mesh.single_device_mesh(), config)
    with runs.open_manager(folder) as manager:
        for step in (2, 4):
            state = state.replace(
                step=np.int32(step),
                params=jax.tree.map(lambda a, step=step: a + 1e-3 * step, state.params),
                ema=jax.tree.map(lambda a, step=step: a - 1e-3 * step, state.ema),
            )
            runs.save(manager, state.stored(), config)
    return state
