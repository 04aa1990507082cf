"""What a new run starts from: folders of PyTorch weights, an earlier run, or random numbers."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from escherjax.devices import mesh as sharding
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.train import starting_points
from escherjax.train.loop import train
from escherjax.train.state import abstract_state, create_state
from escherjax.weights import names, run_params, runs
from tests.helpers.starting_networks import (
    FILES,
    mesh_of,
    random_params,
    saved_run,
    write_part,
    write_pipeline,
)
from tests.helpers.tiny import VAE, tiny_arguments, tiny_config

# A network whose largest tensors are split over devices, on a VAE's latents.
WIDE = {"unet__block_channels": "(64,)"}
ON_8 = {"mesh__data": 1, "mesh__fsdp": -1}
ON_1 = {"mesh__data": 1, "mesh__fsdp": 1}


def initial(config):
    model = eschernet.from_config(config)
    shapes = model.parameter_shapes(config.resolution)
    params, table = starting_points.initial_params(config, model, shapes)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    return params, {point.part: point for point in table}


def refusal(config):
    with pytest.raises(UserError) as caught:
        initial(config)
    return str(caught.value)


def assert_equal_trees(a, b):
    """Bit for bit, with the same names."""
    a, b = (traverse_util.flatten_dict(jax.tree.map(np.asarray, tree)) for tree in (a, b))
    assert a.keys() == b.keys()
    for path, array in a.items():
        np.testing.assert_array_equal(array, b[path], err_msg="/".join(path))


# Folders of PyTorch weights


def test_parts_come_from_their_folders_and_go_before_the_pipeline(tmp_path):
    config = tiny_config(**VAE)
    whole, single = random_params(config), random_params(config, 1)
    write_pipeline(tmp_path / "pipeline", config, whole)
    write_pipeline(tmp_path / "sd", config, single)
    own = write_part(tmp_path / "convnext", "image_encoder", config, single["image_encoder"])

    params, table = initial(tiny_config(**VAE, init__pipeline=tmp_path / "pipeline"))
    assert_equal_trees(params, whole)
    assert {point.source for point in table.values()} == {str(tmp_path / "pipeline")}

    fields = {"init__unet": tmp_path / "sd", "init__encoder": own, "init__vae": tmp_path / "sd/vae"}
    params, table = initial(tiny_config(**VAE, **fields))
    assert_equal_trees(params, single)
    assert table["image_encoder"].source == str(own)

    fields = {"init__pipeline": tmp_path / "pipeline", "init__unet": tmp_path / "sd/unet"}
    params, table = initial(tiny_config(**VAE, **fields))
    assert_equal_trees(params, {**whole, "unet": single["unet"]})


def test_the_pipelines_replaced_part_is_not_even_opened(tmp_path):
    config = tiny_config(**VAE)
    params = random_params(config)
    write_pipeline(tmp_path / "pipeline", config, params)
    (tmp_path / "pipeline/unet/config.json").write_text("{broken")
    unet = write_part(tmp_path / "sd", "unet", config, params["unet"])
    found, _ = initial(tiny_config(**VAE, init__pipeline=tmp_path / "pipeline", init__unet=unet))
    assert_equal_trees(found, params)


def test_a_part_without_source_starts_as_a_run_without_any(tmp_path):
    config = tiny_config()
    params = random_params(config)
    unet = write_part(tmp_path / "unet", "unet", config, params["unet"])
    found, table = initial(tiny_config(init__unet=unet))
    drawn = eschernet.from_config(config).init(config.seed, config.resolution)
    assert_equal_trees(found["unet"], params["unet"])
    assert_equal_trees(found["image_encoder"], drawn["image_encoder"])
    assert table.keys() == {"unet", "image_encoder"}  # no VAE on pixels
    assert table["image_encoder"].source == "random numbers"
    assert table["image_encoder"].loaded == (0, 0) == table["unet"].initialised
    assert_equal_trees(initial(config)[0], drawn)


def test_a_classifier_gives_its_encoder_and_the_table_names_the_head(tmp_path):
    config = tiny_config()
    params = random_params(config)
    folder = write_part(tmp_path / "own", "image_encoder", config, params["image_encoder"])
    tensors = load_file(folder / "model.safetensors")
    head = {"classifier.weight": np.ones((5, 32), np.float32), "classifier.bias": np.ones(5, "f4")}
    prefixed = {f"convnextv2.{name}": tensor for name, tensor in tensors.items()}
    save_file({**prefixed, **head}, folder / "model.safetensors")
    found, table = initial(tiny_config(init__encoder=folder))
    assert_equal_trees(found["image_encoder"], params["image_encoder"])
    point = table["image_encoder"]
    assert set(point.ignored) == set(head)
    count = names.count_parameters(params["image_encoder"])
    assert point.loaded == (len(tensors), count)
    row = starting_points.format_table(table.values()).splitlines()[-1].split()
    assert row[:4] == ["image_encoder", str(folder), str(len(tensors)), f"{count:,}"]
    assert row[4:] == ["0", "2:", "classifier.bias,", "classifier.weight"]


def test_every_difference_of_every_part_is_listed_at_once(tmp_path):
    config = tiny_config(**VAE)
    other = tiny_config(
        **{
            **VAE,
            "latents__vae__latent_channels": 9,
            "encoder__widths": "(16,)",
            "unet__num_heads": 2,
        }
    )
    write_pipeline(tmp_path / "other", other, random_params(other))
    message = refusal(tiny_config(**VAE, init__pipeline=tmp_path / "other"))
    for line in (
        "config.unet.in_channels: 9 there, 4 in this model",
        "config.unet.num_heads: 2 there, 4 in this model",
        "config.unet.cross_channels: 16 there, 32 in this model",
        "tensor unet/conv_in/kernel is [3, 3, 9, 32], expected [3, 3, 4, 32]",
        "tensor unet/conv_out/bias is [9], expected [4]",
        "config.encoder.widths: (16,) there, (32,) in this model",
        "tensor image_encoder/layernorm/scale is [16], expected [32]",
        "config.latents.vae.latent_channels: 9 there, 4 in this model",
        "tensor vae/quant_conv/kernel is [1, 1, 18, 18], expected [1, 1, 8, 8]",
    ):
        assert line in message
    sizes = {p: t.shape for p, t in traverse_util.flatten_dict(random_params(config)).items()}
    others = {p: t.shape for p, t in traverse_util.flatten_dict(random_params(other)).items()}
    assert message.count(", expected [") == sum(sizes[path] != others[path] for path in sizes)


def test_unreadable_parts_and_parts_of_other_sizes_are_refused_together(tmp_path):
    config, other = tiny_config(), tiny_config(encoder__depths="(2,)")
    params = random_params(other)
    unet = write_part(tmp_path / "unet", "unet", config, params["unet"])
    tensors = load_file(unet / FILES["unet"])
    del tensors["conv_in.bias"]
    save_file(tensors, unet / FILES["unet"])
    encoder = write_part(tmp_path / "encoder", "image_encoder", other, params["image_encoder"])
    message = refusal(tiny_config(init__unet=unet, init__encoder=encoder))
    assert "tensor conv_in.bias [32] is missing" in message
    assert "config.encoder.depths: (2,) there, (1,) in this model" in message
    assert "tensor image_encoder/encoder/stages_0/layers_1/dwconv/kernel" in message
    assert "is surplus" in message
    assert "nowhere is not a directory" in refusal(tiny_config(init__unet="nowhere"))


def test_with_allow_partial_what_fits_is_taken_and_the_rest_drawn(tmp_path, caplog):
    inpainting = tiny_config(**{**VAE, "latents__vae__latent_channels": 9, "unet__num_heads": 2})
    config = tiny_config(**VAE)
    theirs, ours = random_params(inpainting), random_params(config, 1)
    unet = write_part(tmp_path / "unet", "unet", inpainting, theirs["unet"])
    vae = write_part(tmp_path / "vae", "vae", config, ours["vae"])
    fields = {**VAE, "init__unet": unet, "init__vae": vae, "init__allow_partial": True}
    params, table = initial(tiny_config(**fields))
    left = {"unet/conv_in/kernel", "unet/conv_out/kernel", "unet/conv_out/bias"}
    assert set(table["unet"].left) == set(table["unet"].ignored) == left
    drawn = eschernet.from_config(config).init(config.seed, config.resolution)
    found = traverse_util.flatten_dict(params["unet"], sep="/")
    for path, array in found.items():
        source = drawn if f"unet/{path}" in left else theirs
        np.testing.assert_array_equal(
            array, traverse_util.flatten_dict(source["unet"], sep="/")[path], err_msg=path
        )
    assert "config.unet.num_heads: 2 there, 4 in this model" in caplog.text
    # Kernels of 9 taps: 4 channels to 32, and 32 to 4 with its bias.
    assert table["unet"].initialised == (3, 2 * 9 * 4 * 32 + 4)
    assert "3 (2,308 parameters): unet/conv_in/kernel, unet/conv_out/bias" in (
        starting_points.format_table(table.values())
    )

    # Half a VAE is none.
    broken = write_part(tmp_path / "vae9", "vae", inpainting, theirs["vae"])
    assert "of another network" in refusal(tiny_config(**{**fields, "init__vae": broken}))


def test_weights_trained_for_something_else_are_named(tmp_path, caplog):
    config = tiny_config()
    folder = tmp_path / "pipeline"
    write_part(folder / "unet", "unet", config, random_params(config)["unet"])
    (folder / "scheduler").mkdir()
    path = folder / "scheduler/scheduler_config.json"
    fields = {"prediction_type": "v_prediction", "beta_end": 0.012, "steps_offset": 1}
    path.write_text(json.dumps(fields))
    (folder / "escherjax.json").write_text('{"cape": "4dof"}')
    for named in (folder, folder / "unet"):
        caplog.clear()
        initial(tiny_config(init__unet=named))
        warnings = [record.getMessage() for record in caplog.records]
        assert warnings == [
            f"unet from {named}: config.diffusion.prediction_type: v_prediction there, epsilon in "
            "this run",
            f"unet from {named}: config.cape: 4dof there, 6dof in this run",
        ]


# Work directories


@pytest.mark.parametrize(("saved", "opened"), [(ON_8, ON_1), (ON_1, ON_8)])
def test_a_run_of_another_mesh_gives_its_bits(tmp_path, saved, opened):
    """The average where one was kept, the raw parameters on request; step and optimizer anew."""
    config = tiny_config(**WIDE, **saved)
    params = random_params(config)
    workdir = saved_run(tmp_path / "run", config, params)
    trained = ("unet", "image_encoder")
    doubled = {**params, **{part: jax.tree.map(lambda x: 2 * x, params[part]) for part in trained}}

    for weights, expected in (("", doubled), ("ema", doubled), ("raw", params)):
        found, table = initial(
            tiny_config(**WIDE, init__workdir=workdir, init__workdir_weights=weights)
        )
        assert_equal_trees(found, expected)
        assert table["unet"].source == f"{workdir} step 7 {weights or 'ema'}"

    new = tiny_config(**WIDE, **opened, init__workdir=workdir / "checkpoints/7")
    found, _ = initial(new)
    model = eschernet.from_config(new)
    mesh = mesh_of(new)
    state = create_state(model, mesh, new, found)
    assert int(state.step) == 0
    assert_equal_trees({**state.params, **state.frozen}, doubled)
    assert_equal_trees(state.ema, {part: doubled[part] for part in trained})
    assert all(not np.any(x) for x in jax.tree.leaves(state.opt_state))
    kernel = state.params["unet"]["mid_block"]["resnets_0"]["conv1"]["kernel"]
    assert kernel.size == mesh.shape["fsdp"] * kernel.addressable_shards[0].data.size


def test_a_part_may_replace_that_of_the_run(tmp_path):
    config = tiny_config()
    params, other = random_params(config), random_params(config, 1)
    workdir = saved_run(tmp_path / "run", config, params)
    encoder = write_part(tmp_path / "enc", "image_encoder", config, other["image_encoder"])
    found, _ = initial(
        tiny_config(init__workdir=workdir, init__workdir_weights="raw", init__encoder=encoder)
    )
    assert_equal_trees(found, {**params, "image_encoder": other["image_encoder"]})


def test_a_run_of_other_sizes_is_refused_with_all_that_differs_or_taken_in_part(tmp_path, caplog):
    other = tiny_config(unet__num_heads=2, encoder__depths="(2,)", cape="4dof")
    params = random_params(other)
    workdir = saved_run(tmp_path / "run", other, params)
    message = refusal(tiny_config(init__workdir=workdir, **WIDE))
    sizes = random_params(tiny_config(**WIDE))
    theirs, ours = (traverse_util.flatten_dict(tree) for tree in (params, sizes))
    differing = [p for p in ours if p[0] == "unet" and ours[p].shape != theirs[p].shape]
    for path in differing:
        assert f"tensor {'/'.join(path)} is {list(theirs[path].shape)}, expected" in message
    assert len(differing) > 30 and message.count("is surplus") == len(theirs) - len(ours)
    for line in (
        "config.unet.num_heads: 2 there, 4 in this model",
        "config.unet.block_channels: (32,) there, (64,) in this model",
        "config.encoder.depths: (2,) there, (1,) in this model",
    ):
        assert line in message

    fields = {"init__workdir": workdir, "init__workdir_weights": "raw"}
    found, table = initial(tiny_config(**fields, init__allow_partial=True))
    assert_equal_trees(found["unet"], params["unet"])
    assert len(table["image_encoder"].ignored) == message.count("is surplus")
    assert table["image_encoder"].initialised == (0, 0)
    assert "config.cape: 4dof there, 6dof in this run" in caplog.text


def test_work_directories_without_what_is_asked_for_are_refused(tmp_path):
    config = tiny_config(ema__enabled=False)
    workdir = saved_run(tmp_path / "run", config, random_params(config))
    assert "kept no average" in refusal(
        tiny_config(init__workdir=workdir, init__workdir_weights="ema")
    )
    assert initial(tiny_config(init__workdir=workdir))[1]["unet"].source.endswith("step 7 raw")
    step = workdir / "checkpoints" / "8"
    assert "no checkpoint 8; it has [7]" in refusal(tiny_config(init__workdir=step))
    runs.prepare_workdir(tmp_path / "new", config)
    (tmp_path / "new/checkpoints").mkdir()
    assert "has no checkpoint yet" in refusal(tiny_config(init__workdir=tmp_path / "new"))
    assert "has no checkpoints/" in refusal(tiny_config(init__workdir=tmp_path))
    assert "Name it as config.init.workdir" in refusal(tiny_config(init__pipeline=workdir))
    message = refusal(tiny_config(**VAE, init__workdir=workdir))
    assert "tensor vae/quant_conv/kernel [1, 1, 8, 8] is missing" in message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"init__pipeline": "a", "init__workdir": "b"}, "both name a whole network"),
        ({"init__vae": "a"}, "has no VAE"),
        ({"init__workdir": "a", "init__workdir_weights": "best"}, "workdir_weights must be one of"),
        ({"init__workdir_weights": "raw"}, "without config.init.workdir"),
    ],
)
def test_starting_points_that_contradict_each_other_are_refused(fields, reason):
    with pytest.raises(UserError, match=reason):
        tiny_config(**fields)


# The whole program


def test_smaller_storage_rounds_the_loaded_parameters_once():
    config = tiny_config(param_dtype="bfloat16")
    mesh, model = sharding.single_device_mesh(), eschernet.from_config(config)
    given = random_params(config)
    state = create_state(model, mesh, config, given)
    abstract = abstract_state(model, mesh, config)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, abstract)
    rounded = jax.tree.map(lambda x: x.astype(state.params["unet"]["conv_in"]["bias"].dtype), given)
    assert_equal_trees(state.params["unet"], rounded["unet"])


def run_on_one_device(workdir, overrides):
    """The training command in a process that has a single device."""
    command = [
        sys.executable,
        "-m",
        "escherjax.train",
        "--config",
        "configs/6dof.py:smoke",
        "--workdir",
        str(workdir),
        *overrides,
    ]
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def trained_params(workdir):
    stored = run_params.open_checkpoint(workdir, weights="raw")
    assert stored.step == 2
    return stored.read(stored.shapes)


@pytest.mark.slow
def test_two_updates_from_parts_and_two_from_that_run_on_one_and_on_eight_devices(tmp_path):
    """Sums in another order: parameters to 2e-5, as for runs from random numbers."""
    fields = {**VAE, "num_steps": 2, "optimizer__eps": 1e-4}
    config = tiny_config(**fields)
    model = eschernet.from_config(config)
    params = jax.tree.map(lambda x: x + np.float32(0.01), model.init(3, config.resolution))
    write_pipeline(tmp_path / "sd", config, params)
    parts = {f"init__{name}": tmp_path / "sd" for name in ("unet", "encoder", "vae")}
    done = run_on_one_device(tmp_path / "a", tiny_arguments(**fields, **parts))
    assert done.returncode == 0, done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("  vae "))
    assert row.split()[1] == str(tmp_path / "sd")
    after = trained_params(tmp_path / "a")
    for path, array in traverse_util.flatten_dict(params).items():
        moved = np.abs(after[path] - array).max()
        # AdamW moves a parameter by no more than about its rate, 1e-3 at most.
        assert moved == 0 if path[0] == "vae" else moved < 2e-3, path

    again = {**fields, "init__workdir": tmp_path / "a"}
    done = run_on_one_device(tmp_path / "b", tiny_arguments(**again))
    assert done.returncode == 0, done.stdout
    assert train(tiny_config(**again, **ON_8), tmp_path / "c") == 0
    one, eight = trained_params(tmp_path / "b"), trained_params(tmp_path / "c")
    assert max(np.abs(one[path] - eight[path]).max() for path in one) < 2e-5
    assert any(np.abs(one[path] - after[path]).max() > 1e-4 for path in one)

    # The start is a part of what the run is; to go on, it is not needed.
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(UserError, match="init.workdir: .* -> ''"):
        train(tiny_config(**fields, init__vae=tmp_path / "sd"), tmp_path / "c")
    assert train(tiny_config(**again, **ON_8), tmp_path / "c") == 0


def test_runs_of_before_these_fields_go_on(tmp_path):
    config = tiny_config(**ON_8)
    runs.prepare_workdir(tmp_path, config)
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["init"] = {"pipeline": ""}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    runs.check_workdir(tmp_path, config)
    with pytest.raises(UserError, match="init.workdir: None -> 'elsewhere'"):
        runs.check_workdir(tmp_path, tiny_config(**ON_8, init__workdir="elsewhere"))
