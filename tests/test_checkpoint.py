"""Checkpoints of a state of a few arrays: what is kept, what is noticed, what is never touched."""

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from escherjax import checkpoints as command
from escherjax.devices import mesh as sharding
from escherjax.errors import TrainingError, UserError
from escherjax.train.state import TrainState
from escherjax.weights import integrity, run_params, runs
from tests.helpers.tiny import tiny_config

CONFIG = tiny_config()


def mesh_of(num_devices):
    return jax.make_mesh(
        (1, num_devices, 1, 1),
        sharding.AXES,
        axis_types=(AxisType.Auto,) * 4,
        devices=jax.devices()[:num_devices],
    )


def host_state(step):
    """Arrays of noise, as trained weights are: they do not compress, so damage goes unseen."""
    rng = np.random.default_rng(step)

    def weights():
        return {
            "unet": {"kernel": rng.normal(size=(64, 1024)).astype(np.float32)},
            "image_encoder": {"bias": rng.normal(size=8).astype(np.float32)},
        }

    return TrainState(
        step=np.int32(step),
        params=weights(),
        frozen={"vae": {"scale": rng.normal(size=16).astype(np.float32)}},
        ema=weights(),
        opt_state={"mu": weights(), "count": np.int32(step)},
    )


def state_on(mesh, step):
    return jax.device_put(host_state(step), sharding.state_shardings(mesh, host_state(step)))


def abstract_on(mesh):
    like = host_state(0)
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        like,
        sharding.state_shardings(mesh, like),
    )


def write(workdir, steps=(10, 20), devices=1, config=CONFIG, **keep):
    runs.prepare_workdir(workdir, config)
    with runs.open_manager(workdir, **keep) as manager:
        for step in steps:
            runs.save(manager, state_on(mesh_of(devices), step).stored(), config)
    return workdir


def restore(workdir, devices=1):
    with runs.open_manager(workdir) as manager:
        trees, position = runs.restore(manager, abstract_on(mesh_of(devices)).stored())
        return TrainState.from_stored(trees), position


def assert_is_step(restored, step):
    state, position = restored
    assert position == step
    for ours, saved in zip(jax.tree.leaves(state), jax.tree.leaves(host_state(step)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), saved)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def workdir(saved, tmp_path):
    """A work directory of its own with the checkpoints 10 and 20."""
    return shutil.copytree(saved, tmp_path / "run")


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_a_checkpoint_opens_on_another_number_of_devices_bit_for_bit(tmp_path, before, after):
    state, position = restore(write(tmp_path / "run", (3,), before), after)
    assert_is_step((state, position), 3)
    assert len(state.params["unet"]["kernel"].sharding.device_set) == after


def test_saving_compiles_nothing_for_small_arrays_of_many_devices(tmp_path, caplog):
    state = jax.device_put(host_state(3), jax.sharding.NamedSharding(mesh_of(8), P()))
    runs.prepare_workdir(tmp_path / "run", CONFIG)
    with runs.open_manager(tmp_path / "run") as manager, jax.log_compiles():
        runs.save(manager, state.stored(), CONFIG)
    assert "XLA compilation" not in caplog.text
    assert_is_step(restore(tmp_path / "run"), 3)


def largest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def truncate(folder):
    file = largest_file(folder / "weights")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


def flip_one_bit(folder):
    file = largest_file(folder / "weights")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def delete_half(folder):
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != integrity.MANIFEST)
    for file in files[::2]:
        file.unlink()
    return files[0]


def delete_optimizer_and_manifest(folder):
    shutil.rmtree(folder / "optimizer")
    (folder / integrity.MANIFEST).unlink()
    return folder / "optimizer"


def delete_manifest(folder):
    (folder / integrity.MANIFEST).unlink()
    return folder / integrity.MANIFEST


def break_manifest(folder):
    file = folder / integrity.MANIFEST
    file.write_text(file.read_text()[:50])
    return file


def empty_manifest(folder):
    file = folder / integrity.MANIFEST
    file.write_text('{"algorithm": "crc32", "files": {}}')
    return file


def drop_the_optimizer_from_the_manifest(folder):
    file = folder / integrity.MANIFEST
    listed = json.loads(file.read_text())["files"]
    kept = {name: entry for name, entry in listed.items() if not name.startswith("optimizer/")}
    file.write_text(json.dumps({"algorithm": "crc32", "files": kept}))
    return file


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_one_bit,
        delete_half,
        delete_optimizer_and_manifest,
        delete_manifest,
        break_manifest,
        empty_manifest,
        drop_the_optimizer_from_the_manifest,
    ],
)
def test_a_damaged_newest_checkpoint_is_named_set_aside_and_the_one_before_taken(
    workdir, damage, caplog
):
    file = damage(workdir / "checkpoints" / "20")
    left = sorted(p.name for p in (workdir / "checkpoints" / "20").rglob("*"))
    assert_is_step(restore(workdir), 10)
    assert str(file) in caplog.text and "going back to checkpoint 10" in caplog.text
    aside = workdir / "checkpoints" / "20.damaged"
    assert sorted(p.name for p in aside.rglob("*")) == left
    # The run saves that step again, and finds it.
    with runs.open_manager(workdir) as manager:
        runs.save(manager, state_on(mesh_of(1), 20).stored(), CONFIG)
    assert_is_step(restore(workdir), 20)
    assert aside.is_dir()


def test_a_renamed_checkpoint_is_set_aside(workdir, caplog):
    (workdir / "checkpoints" / "20").rename(workdir / "checkpoints" / "100")
    with pytest.raises(UserError, match=r"record is of step 20(.|\n)*STEP of \[10\]"):
        run_params.open_checkpoint(workdir)
    assert_is_step(restore(workdir), 10)
    assert "100: its record is of step 20" in caplog.text
    assert (workdir / "checkpoints" / "100.damaged").is_dir()


def test_without_any_manifest_nothing_is_changed(workdir):
    files = [delete_manifest(workdir / "checkpoints" / step) for step in ("10", "20")]
    before = sorted(p for p in workdir.rglob("*"))
    with pytest.raises(UserError, match=r"Not one has a manifest\.json") as raised:
        restore(workdir)
    assert all(str(file) in str(raised.value) for file in files)
    assert sorted(p for p in workdir.rglob("*")) == before


def test_the_manifest_is_written_for_the_step_saved_whatever_times_folders_have(workdir):
    old = workdir / "checkpoints" / "10"
    delete_manifest(old)
    ahead = time.time() + 86400  # as a clock that was set back leaves it
    os.utime(old, (ahead, ahead))
    with runs.open_manager(workdir) as manager:
        for step in (30, 40):
            runs.save(manager, state_on(mesh_of(1), step).stored(), CONFIG)
    assert not integrity.has_manifest(old)
    for step in (30, 40):
        assert integrity.find_problems(workdir / "checkpoints" / str(step)) == []


def test_a_config_that_is_lost_comes_back_from_a_checkpoint_as_the_message_says(workdir):
    file = workdir / "config.json"
    whole = file.read_text()
    file.write_text(whole[:100])
    with pytest.raises(UserError, match="not readable JSON") as cut:
        runs.check_workdir(workdir, CONFIG)
    file.unlink()
    with pytest.raises(UserError, match=r"holds no config\.json") as gone:
        runs.check_workdir(workdir, CONFIG)
    for raised in (cut, gone):
        file.unlink(missing_ok=True)
        command_line = str(raised.value).split("get it back by\n  ")[1].splitlines()[0]
        subprocess.run(command_line, shell=True, check=True)
        assert file.read_text() == whole
        runs.check_workdir(workdir, CONFIG)


def test_when_none_is_whole_nothing_is_changed(workdir):
    files = [flip_one_bit(workdir / "checkpoints" / step) for step in ("10", "20")]
    before = sorted(p for p in workdir.rglob("*"))
    with pytest.raises(UserError) as raised:
        restore(workdir)
    assert all(str(file) in str(raised.value) for file in files)
    assert sorted(p for p in workdir.rglob("*")) == before


def test_newest_and_every_nth_checkpoints_are_kept(tmp_path):
    workdir = write(tmp_path / "run", range(10, 80, 10), keep=2, keep_every=30)
    kept = {int(p.name) for p in (workdir / "checkpoints").iterdir()}
    assert kept == {30, 60, 70}


def test_what_a_killed_save_left_is_removed(workdir):
    left = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "20", left)
    assert_is_step(restore(workdir), 20)
    assert not left.exists()


def test_parameters_are_read_without_the_optimizer(workdir):
    folder = workdir / "checkpoints" / "20"
    for file in (folder / "optimizer").rglob("*"):
        if file.is_file():
            file.write_bytes(b"nothing of use")
    abstract = abstract_on(mesh_of(1))
    stored = run_params.open_checkpoint(workdir, weights="ema")
    params = stored.restore({**abstract.frozen, **abstract.ema})
    np.testing.assert_array_equal(params["unet"]["kernel"], host_state(20).ema["unet"]["kernel"])
    stored = run_params.open_checkpoint(workdir, weights="raw")
    read = stored.read([("unet", "kernel"), ("vae", "scale")])
    wanted = host_state(20)
    np.testing.assert_array_equal(read["unet", "kernel"], wanted.params["unet"]["kernel"])
    np.testing.assert_array_equal(read["vae", "scale"], wanted.frozen["vae"]["scale"])


def test_damaged_parameters_are_not_sampled_from(workdir):
    file = flip_one_bit(workdir / "checkpoints" / "20")
    for read in (
        lambda: run_params.open_checkpoint(workdir, 20, "raw"),
        lambda: run_params.open_checkpoint(workdir),
    ):
        with pytest.raises(UserError, match=r"is damaged(.|\n)*STEP of \[10\]") as raised:
            read()
        assert str(file) in str(raised.value)


@pytest.mark.parametrize("changes", [{}, {"seed": 1}])
def test_a_checkpoint_of_another_run_is_refused_by_name(workdir, tmp_path, capsys, changes):
    runs.check_workdir(workdir, CONFIG)
    other = write(tmp_path / "other", (30,), config=tiny_config(**changes))
    foreign = shutil.copytree(other / "checkpoints" / "30", workdir / "checkpoints" / "30")
    with pytest.raises(UserError, match=f"another run:\n *{foreign}: ") as refused:
        runs.check_workdir(workdir, CONFIG)
    assert "checkpoints/10" not in str(refused.value)
    with pytest.raises(UserError, match=f"{foreign}: of the run "):
        run_params.open_checkpoint(workdir)
    assert command.main([str(workdir)]) == 2 and "30: of the run" in capsys.readouterr().out
    assert run_params.open_checkpoint(workdir, 20).step == 20
    assert integrity.steps(workdir) == [10, 20, 30] and integrity.find_problems(foreign) == []


NESTED = "[" * 100_000


def test_files_nested_without_end_are_named(workdir):
    folder = workdir / "checkpoints" / "20"
    (folder / integrity.MANIFEST).write_text(NESTED)
    (problem,) = integrity.find_problems(folder)
    assert problem.startswith(f"{folder / integrity.MANIFEST}: ")
    integrity.write_manifest(folder)
    (folder / "record" / "metadata").write_text(NESTED)
    integrity.write_manifest(folder)
    (problem,) = integrity.find_problems(folder)
    assert problem.startswith(f"{folder / 'record'}: ")


@pytest.mark.parametrize("content", [NESTED, "null", "7", "[]", "\x00", '{"a": 1e'])
def test_a_config_of_another_kind_is_named(workdir, content):
    path = workdir / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"{path} is not readable"):
        runs.read_config(workdir)


def as_older(folder):
    """A checkpoint as versions wrote it that named no run."""
    record = folder / "record" / "metadata"
    fields = json.loads(record.read_text())
    record.write_text(json.dumps({k: fields[k] for k in fields.keys() - {"run_id"}}))
    integrity.write_manifest(folder)


def test_checkpoints_that_name_no_run_still_open_and_another_config_tells_them(workdir, tmp_path):
    for step in (10, 20):
        as_older(workdir / "checkpoints" / str(step))
    (workdir / "run_id.txt").unlink()
    runs.check_workdir(workdir, CONFIG)
    assert_is_step(restore(workdir), 20)
    runs.prepare_workdir(workdir, CONFIG)  # goes on, and has an id from here on
    runs.check_workdir(workdir, CONFIG)
    assert run_params.open_checkpoint(workdir).step == 20

    other = write(tmp_path / "other", (30,), config=tiny_config(seed=1))
    foreign = shutil.copytree(other / "checkpoints" / "30", workdir / "checkpoints" / "30")
    as_older(foreign)
    with pytest.raises(UserError, match=f"{foreign}: saved under another config .seed: "):
        runs.check_workdir(workdir, CONFIG)


def test_a_full_disk_is_told_and_what_was_whole_stays(workdir):
    """The limit on file sizes stands for the disk: writing fails below Orbax just so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(TrainingError, match="no space is left there, or a quota or limit"),
        runs.open_manager(workdir, keep=2) as manager,
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            runs.save(manager, state_on(mesh_of(1), 30).stored(), CONFIG)
            runs.check_saved(manager, wait=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_is_step(restore(workdir), 20)
    assert integrity.steps(workdir) == [10, 20]


def test_a_save_outlives_jumps_of_the_wall_clock(tmp_path, monkeypatch):
    clock, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: clock() + 86400 * (-1) ** next(looks))
    assert_is_step(restore(write(tmp_path / "run")), 20)


def test_a_vanished_work_directory_is_told_and_not_made_anew(workdir):
    with pytest.raises(TrainingError, match="is gone"), runs.open_manager(workdir) as manager:
        shutil.rmtree(workdir)
        runs.save(manager, state_on(mesh_of(1), 30).stored(), CONFIG)
    assert not workdir.exists()


def run_command(capsys, *arguments):
    code = command.main([str(a) for a in arguments])
    return code, capsys.readouterr().out


def test_the_command_lists_and_verifies(workdir, capsys):
    code, text = run_command(capsys, workdir, "--json", "--verify")
    rows = json.loads(text)["checkpoints"]
    assert code == 0 and [row["step"] for row in rows] == [10, 20]
    for row in rows:
        assert row["whole"] and row["checksums"] == "hold" and row["problems"] == []
        folder = workdir / "checkpoints" / row["folder"]
        assert row["bytes"] == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        assert len(row["config"]) == 8
    assert rows[0]["config"] == rows[1]["config"]

    file = flip_one_bit(workdir / "checkpoints" / "20")
    code, text = run_command(capsys, workdir)
    assert code == 0 and "unread" in text  # not looked for
    code, text = run_command(capsys, workdir, "--verify")
    assert code == 2 and f"damaged: {file}: CRC-32" in text

    file = truncate(workdir / "checkpoints" / "10")
    code, text = run_command(capsys, workdir)
    assert code == 2 and str(file) in text and "NO" in text
    with pytest.raises(UserError, match="has no checkpoints"):
        command.main([str(workdir / "checkpoints")])


def test_the_command_names_what_is_no_whole_checkpoint(workdir, capsys):
    checkpoints = workdir / "checkpoints"
    for stray in ("006", "best", "006.damaged", "\u00b2"):
        shutil.copytree(checkpoints / "10", checkpoints / stray)
    (checkpoints / "30.orbax-checkpoint-tmp").mkdir()
    code, text = run_command(capsys, workdir, "--json")
    others = json.loads(text)["not_checkpoints"]
    assert code == 0 and others == ["006", "006.damaged", "best", "\u00b2"]
    code, text = run_command(capsys, workdir, "--verify")
    assert code == 0 and "not a checkpoint: 006 " in text  # strays are no damage
    assert runs.locate(checkpoints / "006") is None

    missing = delete_manifest(checkpoints / "20")
    shutil.copytree(checkpoints / "10", checkpoints / "100")
    code, text = run_command(capsys, workdir, "--verify")
    assert code == 2 and f"damaged: {missing}: missing" in text
    assert f"damaged: {checkpoints / '100'}: its record is of step 10" in text
    assert [line.split()[-2] for line in text.splitlines()[1:4]] == ["yes", "NO", "NO"]

    for step in ("10", "20", "100"):
        shutil.rmtree(checkpoints / step)
    with pytest.raises(UserError, match=r"has no checkpoints/STEP(.|\n)*not a checkpoint: 006"):
        command.main([str(workdir)])


def test_help_of_the_command_imports_no_jax():
    code = (
        "import sys; from escherjax.checkpoints import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
