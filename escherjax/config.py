"""Configs: Python files in, a locked and checked ConfigDict out, JSON beside every run.

A config file defines `get_config(arg="")` and returns an `ml_collections.ConfigDict`. On the
command line, `--config FILE[:ARG]` names it and `--config.a.b=value` changes one field.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from escherjax import cape
from escherjax.data.loader_config import (
    augmentation_problems,
    bucket_problems,
    moments_problems,
    weight_problems,
)
from escherjax.errors import UserError

# Fields that may change when a run continues: they say how long it runs, what it reports, on what
# and how fast, and not what a step computes (beyond rounding).
RESUMABLE_FIELDS = (
    "num_steps",
    "log_every_steps",
    "checkpoint_every_steps",
    "sample_every_steps",
    "eval_every_steps",
    "keep_checkpoints",
    "keep_every_steps",
    "stall_seconds",
    "profile",
    "wandb",
    "eval",
    "guidance_scale",
    "data.heldout_split",
    "data.num_threads",
    "data.prefetch",
    "mesh",
    "accumulation_steps",
    "remat",
    "attention",
    "attention_gather",
)
# These change what a step computes, and nothing in the shape of what is saved. A run that broke is
# mended by them, so they may change too, which is told (`adjustments`).
ADJUSTABLE_FIELDS = ("optimizer", "data.on_bad_record")


def load_config(file_and_arg: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of `FILE[:ARG]` with `--config.a.b=value` overrides applied, checked and locked.

    Raises UserError for a missing file, an unknown field (with the nearest name), a value of the
    wrong type, or sizes that cannot work (see `check_config`).
    """
    file, _, arg = file_and_arg.partition(":")
    config = config_from_file(Path(file))(arg)
    for override in _joined(overrides):
        _apply_override(config, override)
    config.lock()
    check_config(config)
    return config


def config_from_file(path: Path) -> Callable[[str], ConfigDict]:
    """The `get_config` function of a config file; variants use it to start from `base.py`."""
    if not path.is_file() or path.suffix != ".py":
        nearby = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f" Found in {path.parent}: {', '.join(nearby)}." if nearby else ""
        raise UserError(f"--config: {path} is no Python file.{hint}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} defines no get_config(arg); needed to be a config file.")
    return module.get_config


def check_config(config: ConfigDict) -> None:
    """Checks ranges and combinations that need no device; raises UserError for the first."""
    for name in (
        "num_steps",
        "batch_size",
        "num_references",
        "num_targets",
        "resolution",
        "accumulation_steps",
        "log_every_steps",
        "checkpoint_every_steps",
        "keep_checkpoints",
    ):
        if config[name] < 1:
            raise UserError(f"config.{name} = {config[name]}; needed at least 1.")
    for name in ("keep_every_steps", "stall_seconds", "eval_every_steps", "sample_every_steps"):
        if config[name] < 0:
            raise UserError(f"config.{name} = {config[name]}; needed 0 (off) or more.")
    if config.profile.start_step < 0 or config.profile.num_steps < 1:
        raise UserError(
            f"config.profile.start_step = {config.profile.start_step} and config.profile.num_steps "
            f"= {config.profile.num_steps}; needed 0 (off) or more, and at least 1."
        )
    if config.min_references > config.num_references:
        raise UserError(
            f"config.min_references = {config.min_references} is above config.num_references = "
            f"{config.num_references}; lower it."
        )
    for name in ("dtype", "param_dtype"):
        if config[name] not in ("bfloat16", "float32"):
            raise UserError(f"config.{name} = {config[name]!r}; needed 'bfloat16' or 'float32'.")
    if config.batch_size % config.accumulation_steps:
        raise UserError(
            f"config.batch_size = {config.batch_size} is not a multiple of "
            f"config.accumulation_steps = {config.accumulation_steps}; change one of them."
        )
    cape.check_variant(config.cape)
    unet = config.unet
    if len(unet.block_channels) != len(unet.attention):
        raise UserError(
            f"config.unet.block_channels = {unet.block_channels} and config.unet.attention = "
            f"{unet.attention}; needed as many of one as of the other."
        )
    for width, attends in zip(unet.block_channels, unet.attention, strict=True):
        if width % unet.norm_groups or width % unet.num_heads:
            raise UserError(
                f"config.unet.block_channels holds {width}; needed a multiple of norm_groups = "
                f"{unet.norm_groups} and of num_heads = {unet.num_heads}."
            )
        if attends or width == unet.block_channels[-1]:
            cape.check_channels(config.cape, unet.num_heads, width // unet.num_heads)
    if config.latents.kind not in ("vae", "pixels"):
        raise UserError(f"config.latents.kind = {config.latents.kind!r}; needed 'vae' or 'pixels'.")
    reduction = (
        2 ** (len(config.latents.vae.block_channels) - 1)
        if config.latents.kind == "vae"
        else config.latents.patch
    )
    if config.resolution % reduction:
        raise UserError(
            f"config.resolution = {config.resolution} is not a multiple of {reduction}, by which "
            f"the {config.latents.kind} latents shrink an image; take the next multiple."
        )
    _check_eval(config)
    _check_data(config)
    _check_init(config)


def source_names(config: ConfigDict) -> list[str]:
    """The sources that `config.data.source` names: folders of shards, or "procedural".

    Raises UserError if there are none, or one of them is empty or named twice.
    """
    names = [name.strip() for name in config.data.source.split(",")]
    if names == [""]:
        raise UserError(
            "config.data.source is empty; set it to a folder of shards (made by data_prep), or to "
            "'procedural' for scenes rendered at start."
        )
    if "" in names or len(set(names)) < len(names):
        raise UserError(
            f"config.data.source = {config.data.source!r} names a source twice, or none between "
            "two commas; name each once, and set how often it comes by config.data.weights."
        )
    return names


def view_counts(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """(N, M) of every kind of training step: those of the buckets, or the one of the config."""
    buckets = config.data.get("buckets", ())  # configs of older runs have none
    return tuple((n, m) for n, m, _ in buckets) or ((config.num_references, config.num_targets),)


def _check_eval(config: ConfigDict) -> None:
    """Checks what is first used at an evaluation, hours into a run; lists all that cannot be."""
    sizes, problems = config.eval, []
    for name in ("num_scenes", "num_targets", "num_sampling_steps", "batch_size"):
        if sizes[name] < 1:
            problems.append(f"config.eval.{name} = {sizes[name]}; needed at least 1")
    steps = config.diffusion.num_train_timesteps
    reports = config.eval_every_steps or config.sample_every_steps
    if reports and sizes.num_sampling_steps > steps:
        problems.append(
            f"config.eval.num_sampling_steps = {sizes.num_sampling_steps} is above "
            f"config.diffusion.num_train_timesteps = {steps}; lower it"
        )
    counts = sizes.num_references
    if not counts or any(type(count) is not int or count < 1 for count in counts):
        problems.append(
            f"config.eval.num_references = {counts}; needed one or more whole numbers from 1 on, "
            "such as (1, 3)"
        )
    if problems:
        raise UserError("; ".join(problems) + ".")


def _check_data(config: ConfigDict) -> None:
    """Checks mixture, buckets and augmentation; lists all that cannot be used."""
    data, problems = config.data, []
    for name, least in (("num_threads", 1), ("prefetch", 0), ("num_scenes", 1), ("num_views", 1)):
        if data[name] < least:
            problems.append(f"config.data.{name} = {data[name]}; needed at least {least}")
    num_sources = len(source_names(config)) if data.source else max(1, len(data.weights))
    problems += [f"config.data.{text}" for text in weight_problems(data.weights, num_sources)]
    problems += [f"config.data.{text}" for text in bucket_problems(data.buckets)]
    problems += [f"config.data.{text}" for text in augmentation_problems(data.zoom, data.shift)]
    if data.latents:
        problems += [f"config.data.{text}" for text in moments_problems(data.background, data.zoom)]
        if config.latents.kind != "vae":
            problems.append(
                f"config.latents.kind = {config.latents.kind!r}, and config.data.latents reads the "
                "moments of a VAE: set one of them otherwise"
            )
        if data.source and "procedural" in source_names(config):
            problems.append(
                "config.data.source names 'procedural', of which no moments are stored: set "
                "config.data.latents=False"
            )
    if problems:
        raise UserError("; ".join(problems) + ".")


def _check_init(config: ConfigDict) -> None:
    """Checks that the starting points do not contradict each other; lists all that do."""
    init, problems = config.init, []
    if init.pipeline and init.workdir:
        problems.append(
            "config.init.pipeline and config.init.workdir both name a whole network; set one"
        )
    if init.workdir_weights not in ("", "ema", "raw"):
        problems.append(
            f"config.init.workdir_weights = {init.workdir_weights!r}; needed 'ema', 'raw' or ''"
        )
    if init.workdir_weights and not init.workdir:
        problems.append("config.init.workdir_weights is set without config.init.workdir; unset it")
    if init.vae and config.latents.kind != "vae":
        problems.append(
            f"config.init.vae is set, but config.latents.kind = {config.latents.kind!r} has no VAE"
        )
    if problems:
        raise UserError("; ".join(problems) + ".")


def to_json(config: ConfigDict) -> str:
    """The resolved config as indented JSON, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """A locked ConfigDict from `to_json`'s text."""
    config = ConfigDict(_tuples(json.loads(text)))
    return config.lock()


def differences(
    old: ConfigDict, new: ConfigDict, ignored: Sequence[str] = RESUMABLE_FIELDS + ADJUSTABLE_FIELDS
) -> list[str]:
    """Lines 'field: old -> new' of the fields that make two runs different experiments.

    ignored: fields, or parents of fields, that may differ. A field that one of them lacks, being of
    another version, counts as switched off there.
    """
    return [line for key, line in _changes(old, new) if not _is_among(key, ignored)]


def adjustments(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines as of `differences`, of the fields that may change, but change what is computed."""
    return [line for key, line in _changes(old, new) if _is_among(key, ADJUSTABLE_FIELDS)]


def _changes(old: ConfigDict, new: ConfigDict) -> list[tuple[str, str]]:
    """(field, 'field: old -> new') of all fields that differ."""
    before, after = (_flat(json.loads(to_json(c))) for c in (old, new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key in before and key in after:
            differ = before[key] != after[key]
        else:
            differ = bool(before.get(key) or after.get(key))
        if differ:
            lines.append((key, f"{key}: {before.get(key)!r} -> {after.get(key)!r}"))
    return lines


def _is_among(key: str, fields: Sequence[str]) -> bool:
    return any(key == field or key.startswith(field + ".") for field in fields)


def _joined(arguments: Sequence[str]) -> list[str]:
    """Turns `--config.a 1` into `--config.a=1`."""
    joined: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--config."):
            raise UserError(f"unknown argument {argument!r}; see --help.")
        if "=" not in argument:
            if not remaining:
                raise UserError(f"{argument} has no value; write {argument}=VALUE.")
            argument = f"{argument}={remaining.pop(0)}"
        joined.append(argument)
    return joined


def _apply_override(config: ConfigDict, override: str) -> None:
    path, text = override.removeprefix("--config.").split("=", 1)
    node, parts = config, path.split(".")
    for depth, part in enumerate(parts):
        known = list(node.keys()) if isinstance(node, ConfigDict) else []
        if part not in known:
            parent = ".".join(["config", *parts[:depth]])
            near = difflib.get_close_matches(part, known, n=1)
            hint = f" Did you mean {parent}.{near[0]}?" if near else ""
            raise UserError(f"unknown field config.{path}.{hint} {parent} has: {', '.join(known)}.")
        if depth < len(parts) - 1:
            node = node[part]
    current = node[parts[-1]]
    if isinstance(current, ConfigDict):
        raise UserError(f"config.{path} is a group; set one of its fields: {', '.join(current)}.")
    node[parts[-1]] = _parse(text, current, path)


def _parse(text: str, current: Any, path: str) -> Any:
    if isinstance(current, str):
        return text.strip("\"'")
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(current, tuple):
        value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if type(value) is not type(current):
        raise UserError(
            f"config.{path} = {text!r} is of type {type(value).__name__}; needed "
            f"{type(current).__name__}, such as {current!r}."
        )
    return value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
