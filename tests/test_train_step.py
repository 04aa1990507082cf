import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from escherjax.config import load_config
from escherjax.data.batch import Batch, abstract_batch
from escherjax.devices import mesh as sharding
from escherjax.models import eschernet
from escherjax.train import perf
from escherjax.train.state import (
    abstract_state,
    create_state,
    learning_rate,
    make_optimizer,
    update_ema,
)
from escherjax.train.step import (
    Draws,
    StepSettings,
    gradient_norms,
    make_train_step,
    scene_losses,
    train_program,
)
from escherjax.weights import names
from escherjax.weights.reading import read_pipeline_folder
from tests.helpers.batches import make_batch
from tests.helpers.golden_cameras import cameras_from_poses
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("compiled_fast")


def stepper(config, mesh=None):
    """A function from batches to (host state, losses) after a step on each, from a fresh state."""
    mesh = mesh or sharding.make_mesh(config.mesh)
    model = eschernet.from_config(config)
    step = make_train_step(model, mesh, config)

    def run(batches):
        state, losses = create_state(model, mesh, config), []
        for batch in batches:
            state, metrics = step(state, batch.on_mesh(mesh))
            losses.append(float(metrics["loss"]))
        return jax.tree.map(np.asarray, state), losses

    return run


def largest_difference(a, b):
    return max(
        np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_loss_and_gradients_equal_the_originals_training_step(golden):
    """Tolerances: five times the deviation of the original's float32 run from its float64 run."""
    name, folder, arrays = golden
    stored, params = read_pipeline_folder(folder)
    sizes = [stored.networks[part].config for part in ("unet", "image_encoder", "vae")]
    model = eschernet.from_parts(*sizes, stored.scheduler, name, jnp.float32)
    batch_size, num_targets = 2, 3

    def views(key, count):
        array = np.moveaxis(arrays[key], -3, -1)
        return array.reshape(batch_size, count, *array.shape[-3:])

    batch = Batch(
        ref_images=views("train/input_images_u8", 2),
        target_images=views("train/target_images_u8", num_targets),
        ref_c2w=cameras_from_poses(name, arrays["train/pose_in"]).c2w,
        target_c2w=cameras_from_poses(name, arrays["train/pose_out"]).c2w,
    )
    draws = Draws(
        timesteps=jnp.asarray(arrays["train/timesteps"], jnp.int32),
        noise=jnp.asarray(views("train/noise", num_targets)),
        posterior_noise=jnp.asarray(views("train/posterior_noise", num_targets)),
        drop=jnp.asarray(arrays["train/drop_uniform"] < 0.1),
    )
    trained = {key: params[key] for key in ("unet", "image_encoder")}
    frozen = {"vae": params["vae"]}
    assert np.asarray(draws.drop).tolist() == [False, True]

    def loss(trained):
        return scene_losses(model, trained, frozen, batch, draws).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(trained)
    np.testing.assert_allclose(value, arrays["train/loss_0"], atol=2e-6)

    grads = {
        f"{part}.{key}": array
        for part in grads
        for key, array in names.torch_from_tree(grads[part]).items()
    }
    order = json.loads(str(arrays["train/param_names_json"]))
    assert set(order) == set(grads)
    norms = np.array([np.linalg.norm(grads[key]) for key in order])
    np.testing.assert_allclose(norms, arrays["train/grad_norms"], atol=1e-5)
    recorded = [key for key in arrays.files if key.startswith("train/grad/")]
    assert len(recorded) == 18
    for key in recorded:
        ours = grads[key.removeprefix("train/grad/")]
        np.testing.assert_allclose(ours, arrays[key], atol=1e-5, err_msg=key)
    assert not np.any(grads["unet.conv_in.weight"] == 0)


def test_gradient_norms_are_those_of_each_part_and_of_its_blocks():
    grads = {
        "unet": {
            "mid_block": {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])},
            "conv_in": {"kernel": jnp.array([12.0])},
        },
        "image_encoder": {"stages_0": jnp.array([84.0])},
    }
    norms = gradient_norms(grads)
    assert {name: float(norm) for name, norm in norms.items()} == {
        "grad_norm": 85.0,
        "grad_norm_unet": 13.0,
        "grad_norm_unet/mid_block": 5.0,
        "grad_norm_unet/conv_in": 12.0,
        "grad_norm_image_encoder": 84.0,
        "grad_norm_image_encoder/stages_0": 84.0,
    }


def test_three_updates_equal_the_originals(golden):
    """AdamW with its clip and rates, fed the recorded gradient norm and gradients.

    Only the first update is compared element by element where the gradient is well above the
    rounding of AdamW's division; later ones depend on gradients that were not recorded.
    """
    _, _, arrays = golden
    config = tiny_config(
        optimizer__peak_lr=1e-4, optimizer__warmup_steps=1000, optimizer__first_update_at_peak=True
    )
    schedule = learning_rate(config.optimizer)
    for update in range(3):
        np.testing.assert_allclose(schedule(update), arrays[f"train/lr_used_{update}"], rtol=1e-5)
    optimizer = make_optimizer(config.optimizer)
    total = float(arrays["train/total_grad_norm_0"])
    for key in arrays.files:
        if not key.startswith("train/grad/") or key.endswith("grn.weight"):
            continue
        grad = arrays[key]
        # A second entry stands for the rest of the network, so that the clip sees the true norm.
        rest = np.sqrt(max(total**2 - float((grad**2).sum()), 0.0)).astype(np.float32)
        grads = {"this": jnp.asarray(grad), "rest": jnp.asarray([rest])}
        params = jax.tree.map(jnp.zeros_like, grads)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        recorded = arrays[key.replace("train/grad/", "train/delta_0/")]
        clear = np.abs(grad) > 1e-5
        # Weight decay moves by lr * 0.01 * |p| < 3e-6 more, for parameters below 3.
        np.testing.assert_allclose(
            np.asarray(updates["this"])[clear], recorded[clear], atol=4e-6, err_msg=key
        )


def test_learning_rate_is_the_papers(golden_dir):
    arrays = np.load(golden_dir / "conversions-6dof.npz")
    schedule = learning_rate(load_config("configs/6dof.py").optimizer)
    steps = arrays["lr/step_at_which_set"]
    rates = np.array([schedule(step) for step in steps])
    np.testing.assert_allclose(rates, arrays["lr/value_set_after_that_step"], rtol=2e-5)


@pytest.fixture(scope="module")
def two_batches():
    rng = np.random.default_rng(0)
    return [make_batch(rng) for _ in range(2)]


# Epsilon well above rounding, so that AdamW does not turn the sign of a zero gradient into a step.
EXACT = {"optimizer__eps": 1e-4}


@pytest.fixture(scope="module")
def one_device():
    return stepper(tiny_config(**EXACT), sharding.single_device_mesh())


@pytest.fixture(scope="module")
def on_one_device(one_device, two_batches):
    return one_device(two_batches)


@pytest.mark.slow  # test_equal_numbers has a smaller case of it
def test_accumulation_equals_one_large_batch(two_batches, on_one_device):
    state, losses = on_one_device
    run = stepper(tiny_config(**EXACT, accumulation_steps=4), sharding.single_device_mesh())
    split, split_losses = run(two_batches)
    np.testing.assert_allclose(split_losses, losses, atol=1e-6)
    assert largest_difference(split.params, state.params) < 2e-5


def test_a_skipped_scene_changes_nothing(one_device, two_batches):
    """valid = 0 leaves a scene out of loss and gradient, whatever its row holds."""
    batch = jax.tree.map(np.copy, two_batches[0])
    batch.valid[3] = 0
    other = jax.tree.map(np.copy, batch)
    other.target_images[3] = 0
    other.ref_images[3] = 255
    a, a_losses = one_device([batch])
    b, b_losses = one_device([other])
    assert a_losses == b_losses
    assert largest_difference(a.params, b.params) == 0
    _, all_losses = one_device([two_batches[0]])
    assert all_losses != a_losses


def test_runs_that_differ_in_seed_and_rates_share_one_program():
    """So that they also share its entry in the compilation cache."""

    def program(**changes):
        config = tiny_config(**changes)
        model, mesh = eschernet.from_config(config), sharding.single_device_mesh()
        batch = abstract_batch(config.batch_size, (2, 2), config.resolution, mesh=mesh)
        state, settings = abstract_state(model, mesh, config), StepSettings.from_config(config)
        return train_program(model, mesh, config).lower(state, batch, settings).as_text()

    changes = {"peak_lr": 1e-2, "initial_lr": 1e-3, "final_lr": 0.0, "warmup_steps": 7}
    changes |= {"decay_steps": 9, "weight_decay": 0.5, "max_grad_norm": 3.0, "eps": 1e-3}
    others = {f"optimizer__{name}": value for name, value in changes.items()}
    assert program() == program(seed=1, conditioning_dropout=0.5, ema__decay=0.9, **others)


def test_ema_starts_at_the_first_update_and_ends_at_the_decay():
    """Decay min(decay, (1 + s) / (10 + s)): 0.1 after the first update."""
    ema, params = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    first = update_ema(ema, params, jnp.asarray(0), 0.999)["w"]
    late = update_ema(ema, params, jnp.asarray(10**6), 0.999)["w"]
    np.testing.assert_allclose([first, late], [0.9, 0.001], rtol=1e-4)


def test_state_is_born_split_over_fsdp():
    config = tiny_config(mesh__fsdp=8, unet__block_channels="(64,)")
    mesh = sharding.make_mesh(config.mesh)
    model = eschernet.from_config(config)
    state = create_state(model, mesh, config)
    for tree in (state.params, state.ema, state.opt_state[1][0].mu):
        kernel = tree["unet"]["mid_block"]["resnets_0"]["conv1"]["kernel"]
        assert kernel.size == 8 * kernel.addressable_shards[0].data.size
    expected = abstract_state(model, mesh, config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), expected
    )


def test_a_state_can_start_from_given_parameters():
    """As from a folder of weights: nothing is drawn, and the average starts there too."""
    config = tiny_config(mesh__fsdp=8, unet__block_channels="(64,)")
    mesh = sharding.make_mesh(config.mesh)
    model = eschernet.from_config(config)
    given = jax.tree.map(lambda x: x + 1, model.init(9, config.resolution))
    state = create_state(model, mesh, config, given)
    expected = {name: given[name] for name in ("unet", "image_encoder")}
    assert largest_difference(state.params, expected) == 0
    assert largest_difference(state.ema, expected) == 0
    assert int(state.step) == 0


def test_flop_count_equals_hand_count():
    def program(x, kernel, w):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.lax.scan(lambda c, _: (c @ w, None), y.reshape(-1, 6), None, length=5)[0]

    shapes = [jnp.zeros(s) for s in ((2, 4, 4, 3), (3, 3, 3, 6), (6, 6))]
    conv, products = 2 * (2 * 4 * 4 * 6) * 27, 5 * 2 * (2 * 4 * 4) * 6 * 6
    assert perf.count_flops(program, *shapes) == conv + products
