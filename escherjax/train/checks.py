"""What is checked before a run computes anything: its config, its mesh, its hosts, its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from escherjax import cape, files
from escherjax import config as config_lib
from escherjax.data.loader_config import LoaderConfig, source_names, view_counts, weight_problems
from escherjax.devices import hosts
from escherjax.devices import mesh as mesh_lib
from escherjax.devices.spread import GATHERS
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.weights import lock, runs

_KERNEL_PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}  # config.attention -> where it runs


def check_config(config: ConfigDict) -> None:
    """Checks that the fields of a training config fit together; no device is needed.

    Raises UserError: for sizes, the first that a part of the network refuses; of the rest, all.
    """
    cape.check_variant(config.cape)
    model, unet = eschernet.from_config(config), config.unet
    for width, attends in zip(unet.block_channels, unet.attention, strict=True):
        if attends or width == unet.block_channels[-1]:
            cape.check_channels(config.cape, unet.num_heads, width // unet.num_heads)
    problems = [*_size_problems(config, model.reduction), *_data_problems(config)]
    if problems := problems + _init_problems(config):
        raise UserError("\n".join(f"{problem}." for problem in problems))


def _size_problems(config: ConfigDict, reduction: int) -> Iterator[str]:
    for name, value, of, divisor in (
        ("batch_size", config.batch_size, "config.accumulation_steps", config.accumulation_steps),
        ("resolution", config.resolution, f"what {config.latents.kind} latents shrink", reduction),
    ):
        if value % divisor:
            yield f"config.{name} must be a multiple of {divisor} ({of}), got {value}"
    for name, value, of, most in (
        ("min_references", config.min_references, "config.num_references", config.num_references),
        (
            "eval.num_sampling_steps",
            config.eval.num_sampling_steps if _evaluates(config) else 0,
            "config.diffusion.num_train_timesteps",
            config.diffusion.num_train_timesteps,
        ),
    ):
        if value > most:
            yield f"config.{name} must be at most {of} = {most}, got {value}"


def _data_problems(config: ConfigDict) -> Iterator[str]:
    data = config.data
    names = source_names(data.source) if data.source else [""] * max(1, len(data.weights))
    fields = ("buckets", "background", "zoom", "shift", "on_bad_record")
    loader = LoaderConfig(
        moments_shape=(1, 1, 2) if data.latents else (), **{name: data[name] for name in fields}
    )
    for problem in (*weight_problems(data.weights, len(names)), *loader.problems()):
        yield f"config.data.{problem}"
    if data.latents and config.latents.kind != "vae":
        yield (
            f"config.latents.kind = {config.latents.kind!r}, and config.data.latents reads the "
            "moments of a VAE: change one of them"
        )
    if data.latents and "procedural" in names:
        yield (
            "config.data.source names 'procedural', which has no stored moments: set "
            "config.data.latents=False"
        )


def _init_problems(config: ConfigDict) -> list[str]:
    init = config.init
    return [
        problem
        for problem, holds in {
            "config.init.pipeline and config.init.workdir both name a whole network; set one": (
                init.pipeline and init.workdir
            ),
            "config.init.workdir_weights is set without config.init.workdir; unset it": (
                init.workdir_weights and not init.workdir
            ),
            f"config.init.vae is set, but config.latents.kind = {config.latents.kind!r} has no "
            "VAE": init.vae and config.latents.kind != "vae",
        }.items()
        if holds
    ]


def _evaluates(config: ConfigDict) -> bool:
    return bool(config.eval_every_steps or config.sample_every_steps)


def training_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh of a training config, over which everything that it splits divides.

    Args:
      devices: None for all of this run, or those of a topology to compile for.

    Raises:
      UserError: listing every problem, if the axes of config.mesh are not those of these devices,
        scenes, views, heads or groups do not divide, or a kernel does not run on them.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_lib.axis_sizes(config.mesh, len(devices))
    problems = [
        *mesh_lib.link_problems(config.mesh.dcn_data, sizes["data"], devices),
        *_division_problems(config, sizes),
    ]
    platform = devices[0].platform
    if (needed := _KERNEL_PLATFORMS.get(config.attention, platform)) != platform:
        problems.append(
            f"config.attention = {config.attention!r} runs on {needed.upper()}s, and the devices "
            f"are {platform.upper()}s; it must be 'auto' or 'xla'."
        )
    if config.attention_gather not in GATHERS:
        problems.append(
            f"config.attention_gather must be one of {', '.join(GATHERS)}, got "
            f"{config.attention_gather!r}."
        )
    if problems:
        raise UserError("\n".join(problems))
    return mesh_lib.make_mesh(config.mesh, devices)


def _division_problems(config: ConfigDict, sizes: dict[str, int]) -> Iterator[str]:
    """What does not divide over the axes of a mesh."""
    shards = sizes["data"] * sizes["fsdp"]
    micro_batch = config.batch_size // config.accumulation_steps
    if micro_batch % shards:
        good = max(shards, micro_batch // shards * shards) * config.accumulation_steps
        yield (
            f"a micro-batch of {micro_batch} scenes (config.batch_size = {config.batch_size} / "
            f"accumulation_steps = {config.accumulation_steps}) does not divide over data x fsdp = "
            f"{shards} devices; the nearest batch_size is {good}."
        )
    model, view = ("model", sizes["model"]), ("view", sizes["view"])
    targets = "data.buckets: M" if config.data.buckets else "num_targets"
    divided = [
        ("unet.num_heads", config.unet.num_heads, *model),
        ("unet.norm_groups", config.unet.norm_groups, *model),
        *((targets, count, *view) for count in sorted({m for _, m in view_counts(config)})),
    ]
    if _evaluates(config):
        divided += [
            ("eval.batch_size", config.eval.batch_size, "data x fsdp", shards),
            ("eval.num_targets", config.eval.num_targets, *view),
        ]
    for field, value, axis, size in divided:
        if value % size:
            yield (
                f"config.{field} = {value} does not divide over config.mesh's {axis} = {size} "
                f"devices; it must be a multiple of {size}, or {axis} smaller."
            )


def check_hosts_agree(config: ConfigDict) -> None:
    """Raises UserError on all hosts, naming what differs, unless config and code are the same."""
    mine = {
        "config": config_lib.to_json(config),
        "code": {"commit": runs.commit(), "source": _source_digest(), **runs.versions()},
    }
    first, *others = hosts.gather("config and code", mine)
    lines = []
    for host, other in enumerate(others, 1):
        old, new = (config_lib.from_json(sent["config"]) for sent in (first, other))
        differ = [f"config.{line}" for line in config_lib.differences(old, new, ignored=())]
        differ += [
            f"{name} of the code: {before!r} -> {other['code'][name]!r}"
            for name, before in first["code"].items()
            if before != other["code"][name]
        ]
        lines += [f"host 0 -> host {host}, {line}" for line in differ]
    if lines:
        listed = "\n  ".join(lines)
        raise UserError(
            f"the hosts of this run were started with different configs or code:\n  {listed}\n"
            "Nothing was started. Bring the same code to all hosts, and give all the same command."
        )


def _source_digest() -> str:
    """A hash of the package's source files, for changes that no commit shows."""
    package = Path(config_lib.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def workdir_held(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Holds `workdir`, made if need be, for a run of `config` alone while inside.

    If nothing but the lock came into it, the lock goes again, and the folders made for it. Raises
    UserError if `workdir` cannot be made or written to, another run holds it, or it holds what
    `runs.check_workdir` refuses; TrainingError if the disk below it fails.
    """
    with ExitStack() as stack:
        with files.usable(workdir):
            runs.check_workdir(workdir, config)
            # What the first host makes there must not meet the check of a slower one.
            hosts.gather("work directory checked")
            made = hosts.on_first_host(files.make, workdir)
            first = jax.process_index() == 0
            if first:
                stack.callback(files.remove, made)
            new = hosts.on_first_host(lambda: not (workdir / lock.FILE_NAME).exists())
            stack.enter_context(lock.held(workdir))
            if first and new:
                stack.callback(_remove_lone_lock, workdir)  # before it is let go, so ours
            # Again, now that nobody else changes it.
            hosts.on_first_host(runs.check_workdir, workdir, config)
        yield


def _remove_lone_lock(workdir: Path) -> None:
    with suppress(OSError):  # a folder that vanished has been reported
        if [path.name for path in workdir.iterdir()] == [lock.FILE_NAME]:
            (workdir / lock.FILE_NAME).unlink()
