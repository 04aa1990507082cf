"""Reads what a training run left behind."""

from escherjax.devices import mesh
from escherjax.models import eschernet
from escherjax.train.state import TrainState, abstract_state
from escherjax.weights import runs


def final_state(workdir):
    config = runs.read_config(workdir)
    model = eschernet.from_config(config)
    abstract = abstract_state(model, mesh.single_device_mesh(), config)
    with runs.open_manager(workdir) as manager:
        trees, position = runs.restore(manager, abstract.stored())
    state = TrainState.from_stored(trees)
    assert position == int(state.step)
    return state
