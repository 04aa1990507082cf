"""The training command as users run it: on one CPU device, in a process of its own."""

import dataclasses
import json
import re
import signal

import jax
import numpy as np
import pytest
from PIL import Image

import escherjax
from escherjax import config as config_lib
from escherjax.data import procedural
from escherjax.data.images import encode_png
from escherjax.data.loader_config import LoaderConfig
from escherjax.data.procedural import ProceduralSource
from escherjax.data.shards import write_scenes
from escherjax.devices.stopping import Stop
from escherjax.errors import TrainingError, UserError
from escherjax.train.__main__ import main
from escherjax.train.loop import train
from escherjax.weights import integrity, runs
from tests.helpers.finished_runs import final_state
from tests.helpers.tiny import tiny_arguments, tiny_config
from tests.helpers.tiny_workdir import write_workdir
from tests.helpers.training_process import LONG_RUN, finish, one_device_environment, start, wait_for

# Enough steps that a signal sent after the first checkpoint arrives before the end.
LONG = {**LONG_RUN, "data__buckets": ((2, 2, 2), (1, 1, 1)), "data__zoom": (0.8, 1.25)}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return one_device_environment(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    code, output = finish(start(workdir, environment, **LONG))
    assert code == 0, output
    (workdir.parent / "output").write_text(output)
    return workdir


def test_a_run_stopped_in_every_way_ends_with_the_bits_of_one_that_never_was(
    tmp_path, environment, unbroken
):
    workdir = tmp_path / "run"
    reached = 0
    for stop, code in ((signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        process = start(workdir, environment, **LONG)
        due = reached // 10 * 10 + 10
        wait_for(workdir / "checkpoints" / str(due), process)
        process.send_signal(stop)
        stopped, output = finish(process)
        assert stopped == code, output
        assert not reached or f"continuing from checkpoint {reached}" in output, output
        reached = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*[0-9]"))
        assert due <= reached < LONG["num_steps"]

    code, output = finish(start(workdir, environment, **LONG))
    assert code == 0 and f"continuing from checkpoint {reached}" in output, output
    ours, theirs = final_state(workdir), final_state(unbroken)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    def losses(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [(row["step"], row["loss"]) for row in map(json.loads, lines)]

    assert losses(workdir) == losses(unbroken)
    assert [step for step, _ in losses(workdir)] == list(range(5, 61, 5))


def test_work_directory_holds_what_is_promised(unbroken):
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    promised = {
        "step",
        "loss",
        "lr",
        "grad_norm",
        "steps_per_sec",
        "target_views_per_sec",
        "data_wait_frac",
        "host_bound_frac",
        "grad_norm_image_encoder",
        "grad_norm_unet/mid_block",
    }
    assert all(promised <= row.keys() for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert list(unbroken.glob("events.out.tfevents.*"))
    kept = json.loads((unbroken / "training_cameras.json").read_text())
    assert kept["radius"] == list(procedural.RADIUS_RANGE)
    assert Image.open(unbroken / "loss.png").size == (640, 360)
    config = runs.read_config(unbroken)
    assert config_lib.differences(config, tiny_config(**LONG)) == []
    steps = sorted(int(path.name) for path in (unbroken / "checkpoints").iterdir())
    assert steps == [40, 50, 60]
    record = json.loads(next((unbroken / "checkpoints/60/record").glob("metadata")).read_text())
    assert record["step"] == record["data_position"] == 60 and "jax" in record["versions"]


def test_every_bucket_is_compiled_once_and_counted_as_it_is(unbroken):
    output = (unbroken.parent / "output").read_text()
    announced = re.findall(r"compiling the training step for (N = \d, M = \d)", output)
    assert sorted(announced) == ["N = 1, M = 1", "N = 2, M = 2"]
    config = runs.read_config(unbroken)
    loader = LoaderConfig(buckets=config.data.buckets, seed=config.seed)
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:  # the first window leaves out the update that was compiled first
        window = range(row["step"] - 5, row["step"])
        targets = config.batch_size * sum(loader.bucket_of(s).num_targets for s in window)
        counted = row["target_views_per_sec"] / row["steps_per_sec"] * len(window)
        assert abs(counted - targets) < 1e-6 * targets  # rounding of the two rates
    facts = escherjax.load(unbroken).facts
    assert facts.num_references == (1, 2) and facts.num_targets is None


class StopAsked(Stop):
    """Hears a signal when it is asked for the `number`-th time."""

    def __init__(self, number):
        super().__init__()
        self.left = number

    def requested(self):
        self.left -= 1
        if self.left == 0:
            self.notice(signal.SIGTERM, None)
        return super().requested()


def test_a_stop_before_another_size_is_compiled_saves_and_compiles_no_more(tmp_path, caplog):
    config = tiny_config(
        mesh__fsdp=-1, batch_size=8, data__buckets=LONG["data__buckets"], checkpoint_every_steps=50
    )
    loader = LoaderConfig(buckets=config.data.buckets, seed=config.seed)
    other = next(s for s in range(1, 6) if loader.bucket_of(s) != loader.bucket_of(0))
    # Asked once at the start, before each step, and before each of the two compilations.
    stop = StopAsked(1 + (other + 1) + 2)
    with caplog.at_level("INFO"):
        assert train(config, tmp_path / "run", stop) == 75
    assert stop.left == 0
    assert caplog.text.count("compiling the training step") == 1
    assert f"stopped by a signal at step {other}" in caplog.text
    assert integrity.newest_whole(tmp_path / "run") == other


def test_a_wrong_command_exits_with_2_and_one_message(tmp_path, environment):
    code, output = finish(start(tmp_path / "run", environment, resolutoin=3))
    assert code == 2
    assert "Did you mean config.resolution?" in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()


def shards_with(folder, broken=(), num_scenes=8):
    """Shards of small scenes, of which those in `broken` have a picture cut short."""
    rendered = ProceduralSource(0, num_scenes, 6, 16)
    scenes = []
    for index in range(num_scenes):
        scene = rendered[index]
        images = [encode_png(image) for image in scene.images]
        if index in broken:
            images = [data[:60] for data in images]
        scenes.append(dataclasses.replace(scene, images=images))
    write_scenes(folder, scenes, "train", 2)
    return folder


ON_ALL_DEVICES = {"mesh__data": 1, "mesh__fsdp": -1, "batch_size": 8, "num_steps": 3}


def test_bad_records_are_skipped_and_named_or_stop_the_run(tmp_path, caplog):
    shards = shards_with(tmp_path / "shards", broken=[3])
    fields = {**ON_ALL_DEVICES, "data__source": shards, "num_steps": 2}
    with pytest.raises(UserError, match="procedural-0-0000003"):
        train(tiny_config(**fields), tmp_path / "stop")
    with caplog.at_level("WARNING"):
        assert train(tiny_config(**fields, data__on_bad_record="skip"), tmp_path / "skip") == 0
    assert "scene procedural-0-0000003 is left out" in caplog.text
    assert "2 rows were left out" in caplog.text  # once in each of the two batches of all scenes


def test_a_batch_without_a_single_good_scene_stops_the_run(tmp_path):
    shards = shards_with(tmp_path / "shards", broken=range(8))
    fields = {**ON_ALL_DEVICES, "data__source": shards, "data__on_bad_record": "skip"}
    with pytest.raises(UserError, match="every scene of the batch for update 1"):
        train(tiny_config(**fields), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_scenes(tmp_path):
    fields = {**ON_ALL_DEVICES, "optimizer__initial_lr": 1e30, "optimizer__peak_lr": 1e30}
    with pytest.raises(TrainingError, match=r"update [23] gave loss nan.*procedural-42-00000"):
        train(tiny_config(**fields), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch_size": 12}, "does not divide over data x fsdp = 8 devices"),
        ({"mesh__data": 3}, "does not divide 8 devices"),
        ({"mesh__fsdp": 2}, "uses 2 of 8 devices"),
        ({"mesh__model": 8}, "unet.num_heads = 4 does not divide over config.mesh's model = 8"),
        ({"data__source": "nowhere"}, "nowhere"),
        ({"data__source": ""}, "config.data.source is empty"),
        ({"data__num_views": 3, "data__with_replacement": False}, "2 references"),
        ({"eval_every_steps": 5, "eval__num_scenes": 7}, "not a multiple"),
        ({"init__pipeline": "nowhere"}, "nowhere"),
        ({"latents__kind": "vae", "resolution": 16}, "config.init.vae must name weights"),
        ({"init__pipeline": "a", "init__workdir": "b"}, "both name a whole network"),
        ({"init__workdir": "nowhere"}, "nowhere has no checkpoints"),
        ({"cape": "5dof"}, "cape must be one of 6dof.* got '5dof'"),
        ({"unet__num_heads": 16, "cape": "6dof"}, "divisible by 4"),
        ({"resolution": 17}, "resolution must be a multiple of 2"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"min_references": 3}, "min_references must be at most config.num_references"),
    ],
)
def test_wrong_configs_are_refused_before_anything_is_written(tmp_path, changes, reason):
    overrides = tiny_arguments(**{**ON_ALL_DEVICES, **changes})
    arguments = ["--config", "configs/6dof.py:smoke", "--workdir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=reason):
        main([*arguments, *overrides])
    assert not (tmp_path / "run").exists()


def test_an_address_is_no_work_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="must be a folder of this file system"):
        main(["--config", "configs/demo.py", "--workdir", "gs://bucket/run"])
    assert not list(tmp_path.iterdir())


def test_a_work_directory_of_another_config_is_refused_and_kept(tmp_path):
    workdir = tmp_path / "run"
    runs.prepare_workdir(workdir, tiny_config(**ON_ALL_DEVICES))
    # Until there is a checkpoint, nothing can be lost.
    runs.check_workdir(workdir, tiny_config(**ON_ALL_DEVICES, seed=7))
    (workdir / "checkpoints" / "2").mkdir(parents=True)
    before = (workdir / "config.json").read_text()
    with pytest.raises(UserError, match="seed: 42 -> 7"):
        train(tiny_config(**ON_ALL_DEVICES, seed=7), workdir)
    assert (workdir / "config.json").read_text() == before
    longer = tiny_config(**{**ON_ALL_DEVICES, "num_steps": 99})
    runs.check_workdir(workdir, longer)  # more steps of the same run are welcome

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(UserError, match="not a training run"):
        train(longer, tmp_path / "photos")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        train(longer, tmp_path / "file")


def rates(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["lr"] for row in rows}


def test_a_stopped_run_goes_on_with_another_rate_and_other_ways_to_fit_the_devices(
    tmp_path, caplog
):
    """What the messages about broken losses and bad records advise, and what fewer chips ask."""
    fields = {**ON_ALL_DEVICES, "num_steps": 2, "optimizer__warmup_steps": 1, "seed": 3}
    assert train(tiny_config(**fields), tmp_path / "run") == 0
    changed = {
        **fields,
        "num_steps": 4,
        "optimizer__peak_lr": 1e-5,
        "optimizer__max_grad_norm": 0.25,
        "data__on_bad_record": "skip",
        "data__heldout_split": "train",
        "guidance_scale": 1.0,
        "mesh__fsdp": 2,
        "mesh__model": 4,
        "accumulation_steps": 2,
        "remat": True,
        "attention": "xla",
    }
    caplog.clear()
    with caplog.at_level("INFO"):
        assert train(tiny_config(**changed), tmp_path / "run") == 0
    assert "continuing from checkpoint 2" in caplog.text
    told = [record.message for record in caplog.records if "another value" in record.message]
    assert [line.split("config.")[1] for line in told] == [
        "data.on_bad_record: 'stop' -> 'skip'",
        "optimizer.max_grad_norm: 0.5 -> 0.25",
        "optimizer.peak_lr: 0.001 -> 1e-05",
    ]
    lr = rates(tmp_path / "run")
    assert lr[2] == pytest.approx(1e-3) and lr[4] == pytest.approx(1e-5)
    assert runs.read_config(tmp_path / "run").optimizer.peak_lr == 1e-5
    record = integrity.read_record(tmp_path / "run" / "checkpoints" / "4")
    assert config_lib.from_json(record["config"]).optimizer.peak_lr == 1e-5
    before = integrity.read_record(tmp_path / "run" / "checkpoints" / "2")
    assert config_lib.from_json(before["config"]).optimizer.peak_lr == 1e-3


def test_a_run_beyond_the_steps_asked_for_is_told_and_left_as_it_is(tmp_path, caplog):
    workdir = tmp_path / "run"
    write_workdir(workdir, **ON_ALL_DEVICES)  # checkpoints 2 and 4
    before = (workdir / "config.json").read_text()
    with caplog.at_level("INFO"):
        assert train(tiny_config(**{**ON_ALL_DEVICES, "num_steps": 3}), workdir) == 0
    assert "already at step 4, and config.num_steps = 3" in caplog.text
    assert (workdir / "config.json").read_text() == before
    assert integrity.steps(workdir) == [2, 4]
