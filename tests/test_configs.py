import functools
import operator

import pytest

from escherjax import config as config_lib
from escherjax.config import load_config
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.train.checks import check_config
from escherjax.weights.names import count_parameters

# arXiv 2402.03908, section 4 and appendix; what the paper leaves open is the released code's.
PAPER = {
    "num_steps": 100_000,
    "batch_size": 672,
    "resolution": 256,
    "num_references": 3,
    "num_targets": 3,
    "dtype": "bfloat16",
    "param_dtype": "float32",
    "conditioning_dropout": 0.1,
    "optimizer.peak_lr": 1e-4,
    "optimizer.initial_lr": 1e-5,
    "optimizer.final_lr": 1e-5,
    "optimizer.warmup_steps": 1000,
    "optimizer.decay_steps": 100_000,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.01,
    "optimizer.max_grad_norm": 0.5,
    "diffusion.num_train_timesteps": 1000,
    "diffusion.beta_schedule": "scaled_linear",
    "diffusion.beta_start": 0.00085,
    "diffusion.beta_end": 0.012,
    "diffusion.prediction_type": "epsilon",
    "latents.kind": "vae",
    "latents.vae.scaling_factor": 0.18215,
    "encoder.image_size": 224,
    "data.with_replacement": True,
    "data.background": "zero123",
    "data.buckets": (),
    "data.zoom": (),
    "data.shift": 0.0,
    "guidance_scale": 3.0,
}


@pytest.mark.parametrize("cape", ["6dof", "4dof"])
def test_the_full_size_configs_are_the_papers(cape):
    config = load_config(f"configs/{cape}.py")
    assert config.cape == cape
    found = {key: functools.reduce(operator.getitem, key.split("."), config) for key in PAPER}
    assert found == PAPER


def test_the_full_size_network_has_the_originals_parameters():
    shapes = eschernet.from_config(load_config("configs/6dof.py")).parameter_shapes(256)
    counts = {name: count_parameters(tree) for name, tree in shapes.items()}
    assert counts == {"unet": 859_520_964, "image_encoder": 27_866_496, "vae": 83_653_863}


@pytest.mark.parametrize("name", ["6dof", "4dof", "small", "demo", "6dof.py:smoke"])
def test_every_config_loads_and_describes_a_network(name):
    config = load_config(f"configs/{name}" if ".py" in name else f"configs/{name}.py")
    shapes = eschernet.from_config(config).parameter_shapes(config.resolution)
    assert count_parameters(shapes["unet"]) > 10_000


def test_overrides_change_one_field_and_keep_its_type():
    config = load_config(
        "configs/6dof.py",
        [
            "--config.batch_size=8",
            "--config.optimizer.peak_lr",
            "1",
            "--config.remat=true",
            "--config.unet.block_channels=(320,640)",
            "--config.unet.attention=(True,True)",
            "--config.data.source=shards/a=b",
        ],
    )
    assert (config.batch_size, config.optimizer.peak_lr, config.remat) == (8, 1.0, True)
    assert config.unet.block_channels == (320, 640) and config.data.source == "shards/a=b"
    original = load_config("configs/6dof.py")
    assert len(config_lib.differences(original, config)) == 4  # remat may change, and the rate
    assert config_lib.adjustments(original, config) == ["optimizer.peak_lr: 0.0001 -> 1.0"]


def test_json_keeps_every_value():
    config = load_config("configs/small.py")
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("file", "overrides", "reason"),
    [
        ("5dof", [], "5dof not found.* Shipped configs: 4dof, 6dof"),
        ("configs/5dof.py", [], "configs has 4dof.py, 6dof.py"),
        ("configs/6dof.py:tiny", [], "must be 'smoke', got 'tiny'"),
        ("README.md", [], "README.md"),
        ("configs/6dof.py", ["--config.batchsize=3"], "Did you mean config.batch_size"),
        ("configs/6dof.py", ["--config.optimizer.peak=3"], "Did you mean config.optimizer.peak_lr"),
        ("configs/6dof.py", ["--config.batch_size=many"], "of type int, such as 672"),
        ("configs/6dof.py", ["--config.batch_size=1.5"], "of type int"),
        ("configs/6dof.py", ["--config.optimizer=3"], "is a group"),
        ("configs/6dof.py", ["--config.batch_size"], "has no value"),
        ("configs/6dof.py", ["--batch_size=3"], "unknown argument"),
        ("configs/6dof.py", ["--config.num_steps=0"], "num_steps must be at least 1, got 0"),
        ("configs/6dof.py", ["--config.accumulation_steps=5"], "batch_size must be a multiple"),
        ("configs/6dof.py", ["--config.resolution=100"], "resolution must be a multiple of 8"),
        ("configs/6dof.py", ["--config.min_references=4"], "min_references must be at most"),
        ("configs/6dof.py", ["--config.eval_every_steps=-1"], "eval_every_steps .*at least 0"),
        ("configs/6dof.py", ["--config.sample_every_steps=-1"], "sample_every_steps .*at least 0"),
        ("configs/6dof.py", ["--config.keep_every_steps=-1"], "keep_every_steps .*at least 0"),
        ("configs/6dof.py", ["--config.profile.num_steps=0"], "profile.num_steps .*at least 1"),
        ("configs/6dof.py", ["--config.checkpoint_every_steps=0"], "at least 1"),
        ("configs/6dof.py", ["--config.log_every_steps=-5"], "at least 1"),
        ("configs/6dof.py", ["--config.dtype=float16"], "dtype must be one of 'bfloat16'"),
        ("configs/6dof.py", ["--config.eval.num_references=(0,)"], "eval.num_references"),
        ("configs/6dof.py", ["--config.eval.num_references=()"], "eval.num_references"),
        ("configs/6dof.py", ["--config.eval.num_references=(1.5,)"], "eval.num_references"),
        ("configs/6dof.py", ["--config.eval.num_sampling_steps=0"], "num_sampling_steps"),
        ("configs/6dof.py", ["--config.eval.num_sampling_steps=1001"], "at most config.diffusion"),
        (
            "configs/6dof.py",
            ["--config.eval.batch_size=0", "--config.eval.num_scenes=0"],
            r"eval.num_scenes must be at least 1(.|\n)*config.eval.batch_size must be",
        ),
        ("configs/6dof.py", ["--config.eval.num_targets=0"], "eval.num_targets"),
        ("configs/6dof.py", ["--config.data.num_threads=0"], "data.num_threads"),
        ("configs/6dof.py", ["--config.data.prefetch=-1"], "data.prefetch"),
        ("configs/6dof.py", ["--config.data.num_scenes=0"], "data.num_scenes"),
        ("configs/6dof.py", ["--config.data.num_views=0"], "data.num_views"),
        ("configs/6dof.py", ["--config.data.background=grey"], "config.data.background .*'grey'"),
        ("configs/6dof.py", ["--config.init.workdir_weights=best"], "init.workdir_weights"),
        ("configs/6dof.py", ["--config.init.workdir_weights=ema"], "without config.init.workdir"),
        (
            "configs/6dof.py",
            ["--config.unet.block_channels=(100,)", "--config.unet.attention=(True,)"],
            "norm_groups",
        ),
        ("configs/6dof.py", ["--config.unet.attention=(True,)"], "attention"),
    ],
)
def test_wrong_configs_say_what_is_needed(file, overrides, reason):
    with pytest.raises(UserError, match=reason):
        load_config(file, overrides, check_config)


def test_a_config_is_found_by_its_name_and_by_its_path_from_anywhere(tmp_path, monkeypatch):
    shipped = load_config("6dof").to_dict()
    own = tmp_path / "own.py"
    own.write_text(
        "from escherjax.config import config_from_file\n\n\n"
        "def get_config(arg=''):\n"
        "    c = config_from_file('6dof')(arg)\n    c.seed = 7\n    return c\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/6dof.py").to_dict() == shipped
    assert load_config("own.py").to_dict() == {**shipped, "seed": 7}
    assert load_config(f"{own}:smoke", ["--config.batch_size=4"]).batch_size == 4


def test_every_rule_holds_for_the_defaults_and_names_an_existing_field():
    """A default that breaks its own rule would refuse every run."""
    config = load_config("base")
    declared = config_lib._declared()
    for path in declared.RESUMABLE_FIELDS + declared.ADJUSTABLE_FIELDS:
        functools.reduce(operator.getitem, path.split("."), config)
    for path, item in declared.FIELDS.walk():
        assert item.meaning, path
