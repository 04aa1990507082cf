"""One program on one device and on eight: equal losses, gradients and parameters.

The network is small but has every kind of layer that is split. Parameters are random and none of
them zero, as a fresh network's last products are, which would leave nothing to compare.
"""

import jax
import numpy as np
import pytest

from escherjax.devices import mesh as sharding
from escherjax.models import eschernet
from escherjax.train.state import create_state
from escherjax.train.step import make_train_step
from tests.helpers.batches import make_batch
from tests.helpers.random_models import random_params
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("compiled_fast")

NUM_STEPS = 5
# One transformer, in the middle block: what compiles costs the time here. Epsilon is well above
# rounding, so that AdamW does not turn the sign of a zero gradient into a step.
FIELDS = {
    "num_targets": 4,
    "batch_size": 8,
    "unet__block_channels": "(64,)",
    "unet__attention": "(False,)",
    "optimizer__eps": 1e-4,
    "optimizer__initial_lr": 1e-3,
    "optimizer__max_grad_norm": 1e9,
}


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    made = [make_batch(rng, num_views=6) for _ in range(NUM_STEPS)]
    made[1].valid[3] = 0
    return made


def run(config, mesh, batches):
    """(losses, gradients, parameters, average) as host arrays of NUM_STEPS updates on `mesh`.

    The gradients are those of the first step, read from AdamW's first moment.
    """
    model = eschernet.from_config(config)
    params = random_params(model.parameter_shapes(config.resolution), np.random.default_rng(1))
    state = create_state(model, mesh, config, params)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_train_step(model, mesh, config)
    losses, gradients = [], None
    for batch in batches:
        state, metrics = step(state, batch.on_mesh(mesh))
        losses.append(float(metrics["loss"]))
        if gradients is None:
            moment = state.opt_state[1][0].mu
            gradients = jax.tree.map(lambda m: np.asarray(m) / 0.1, moment)
    assert step.func._cache_size() == 1
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    return losses, gradients, *jax.tree.map(np.asarray, (state.params, state.ema))


@pytest.fixture(scope="module")
def on_one_device(batches):
    """What one device computes for a camera encoding."""
    known = {}

    def result(cape):
        if cape not in known:
            known[cape] = run(
                tiny_config(**FIELDS, cape=cape), sharding.single_device_mesh(), batches
            )
        return known[cape]

    return result


def worst(ours, theirs):
    """The largest difference of a tensor, over that tensor's largest value, and its name."""
    rows = [
        (float(np.abs(a - b).max() / np.abs(b).max()), jax.tree_util.keystr(path))
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
        )
    ]
    return max(rows)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("cape", "axes", "accumulation_steps"),
    [
        pytest.param("6dof", {"data": 8}, 1, marks=SLOW),
        pytest.param("6dof", {"fsdp": 8}, 1, marks=SLOW),
        pytest.param("6dof", {"data": 2, "fsdp": 2, "model": 2}, 1, marks=SLOW),
        ("4dof", {"fsdp": 4, "model": 2}, 1),
        ("4dof", {"data": 2, "view": 4}, 1),
        ("4dof", {"data": 2, "fsdp": 2, "view": 2}, 2),
        ("4dof", {"fsdp": 2, "model": 2, "view": 2}, 1),
    ],
    ids=str,
)
def test_eight_devices_equal_one(batches, on_one_device, cape, axes, accumulation_steps):
    """Sums in another order, so equal but for rounding: float32 rounds by 6e-8 of a value, and
    differences of up to 1.1e-6 of a tensor's largest value were seen in gradients, 5e-7 elsewhere.
    A wrong sum is off by the size of an axis.
    """
    mesh = {f"mesh__{axis}": axes.get(axis, 1) for axis in sharding.AXES}
    config = tiny_config(**FIELDS, cape=cape, **mesh, accumulation_steps=accumulation_steps)
    losses, *trees = run(config, sharding.make_mesh(config.mesh), batches)
    known_losses, *known = on_one_device(cape)
    np.testing.assert_allclose(losses, known_losses, rtol=5e-6)
    for ours, theirs, tolerance in zip(trees, known, (1e-5, 5e-6, 5e-6), strict=True):
        assert worst(ours, theirs) < (tolerance, "")
