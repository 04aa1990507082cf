"""What the parameters of a new run start from, part by part, and a table that says so.

`config.init` names the sources: a whole network (`pipeline`, a folder of PyTorch weights, or
`workdir`, an earlier run), and single parts (`unet`, `encoder`, `vae`) that go before it. A part
without a source starts from random numbers; the VAE, which is not trained, has to have one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.initialization import draw_parameters
from escherjax.weights import hub, names, reading, run_params, runs, strict_json
from escherjax.weights.run_params import ParamPath

log = logging.getLogger("escherjax.train")

Shapes = dict[ParamPath, tuple[int, ...]]

RANDOM = "random numbers"
_FIELDS = {"unet": "unet", "image_encoder": "encoder", "vae": "vae"}  # part -> config.init field
_FOLDERS = {"unet": ("unet", "unet_ema"), "image_encoder": ("image_encoder",), "vae": ("vae",)}
_DIFFUSION = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
_MOST_NAMES = 3  # in a cell of the table


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """Where one part of the network starts."""

    part: str
    source: str  # as the user named it
    loaded: tuple[int, int]  # how many (tensors, parameters) came from there
    initialised: tuple[int, int]  # how many were initialised at random instead
    left: tuple[str, ...]  # paths of the latter
    ignored: tuple[str, ...]  # names of tensors in the source that this network has no place for


@dataclasses.dataclass(frozen=True)
class _Stored:
    """One part as a source holds it.

    sizes: its config record; shapes: of its tensors, in our names and layouts; read: host arrays
    of some of them; trained_for: config fields that give the U-Net's numbers their meaning, as far
    as the source says; unused: names of stored tensors that no network of ours has.
    """

    source: str
    sizes: Any
    shapes: Shapes
    read: Callable[[Iterable[ParamPath]], dict[ParamPath, np.ndarray]]
    trained_for: dict[str, Any]
    unused: tuple[str, ...] = ()


def initial_params(
    config: ConfigDict, model: EscherNet, shapes: Params
) -> tuple[Params, list[StartingPoint]]:
    """All parameters that a new run starts from, as host arrays, and where each part is from.

    shapes: the parameter tree {"unet", "image_encoder", "vae"} as ShapeDtypeStructs. Every tensor
    is read once; of a source, only the parts in use are read.
    Raises one UserError that lists, for all parts, unreadable files, sizes that differ, and every
    missing, mis-shaped or surplus tensor. With config.init.allow_partial, U-Net and encoder take
    what fits instead.
    """
    flat = traverse_util.flatten_dict(shapes)
    errors: list[str] = []
    params: dict[ParamPath, np.ndarray] = {}
    table: list[StartingPoint] = []
    for part, open_source in _sources(config).items():
        wanted = {path: leaf for path, leaf in flat.items() if path[0] == part}
        try:
            stored = open_source(part) if open_source else None
            fitting = _fitting(stored, part, wanted, model, config) if stored else []
        except UserError as error:
            errors.append(str(error))
            continue
        if not errors:  # else nothing of this will be used
            params |= stored.read(fitting) if stored else {}
            table.append(_starting_point(part, stored, set(fitting), wanted))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    missing = {path: leaf for path, leaf in flat.items() if path not in params}
    drawn = draw_parameters(traverse_util.unflatten_dict(missing), config.seed)
    return _like(shapes, params | traverse_util.flatten_dict(drawn)), table


def format_table(table: Sequence[StartingPoint]) -> str:
    """The starting points as lines of text, one row for each part."""
    header = ("part", "source", "tensors", "parameters", "left at initialisation", "ignored")
    rows = [header] + [
        (
            point.part,
            point.source,
            f"{point.loaded[0]:,}",
            f"{point.loaded[1]:,}",
            _summary(point.left, point.initialised),
            _summary(point.ignored),
        )
        for point in table
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = (2, 3)
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _sources(config: ConfigDict) -> dict[str, Callable[[str], _Stored] | None]:
    """For each part in use, what opens its source; None for random numbers."""
    init = config.init
    sources: dict[str, Callable[[str], _Stored] | None] = {}
    for part, field in _FIELDS.items():
        if part == "vae" and config.latents.kind != "vae":
            continue
        folder = init[field] or init.pipeline
        if folder:
            sources[part] = functools.partial(_open_folder, folder)
        elif init.workdir:
            sources[part] = functools.partial(_open_workdir, init.workdir, init.workdir_weights)
        else:
            sources[part] = None
    if "vae" in sources and sources["vae"] is None:
        raise UserError(
            "config.init.pipeline, config.init.workdir and config.init.vae are empty, but "
            "config.latents.kind = 'vae' trains on the latents of a frozen VAE, which random "
            "weights cannot make. Name a folder of weights, or set config.latents.kind=pixels."
        )
    return sources


def _open_folder(weights: str, part: str) -> _Stored:
    """A part from its own folder, or from the folder that holds it."""
    folder = hub.resolve(weights, part)
    if not folder.is_dir():
        raise UserError(f"{weights} is not a directory; expected a folder of PyTorch weights.")
    if runs.locate(folder) is not None:
        raise UserError(
            f"{weights} is a training work directory, not a folder of PyTorch weights. Name it "
            "as config.init.workdir."
        )
    trained_for = _trained_for(folder.parent)
    for name in _FOLDERS[part]:
        if (folder / name).is_dir():
            trained_for, folder = _trained_for(folder), folder / name
            break
    sizes, params, report = reading.read_component(folder, part)
    arrays = {(part, *path): a for path, a in traverse_util.flatten_dict(params).items()}
    return _Stored(
        source=weights,
        sizes=sizes,
        shapes={path: array.shape for path, array in arrays.items()},
        read=lambda paths: {path: arrays[path] for path in paths},
        trained_for=trained_for,
        unused=report.ignored,
    )


def _trained_for(folder: Path) -> dict[str, Any]:
    """What a pipeline folder states about its U-Net's training, by config field."""
    problems: list[str] = []
    scheduler = strict_json.read_optional(folder / "scheduler" / "scheduler_config.json", problems)
    facts = strict_json.read_optional(folder / "escherjax.json", problems)
    if problems:
        raise UserError("; ".join(problems) + ". Restore or remove what cannot be read.")
    scheduler, facts = scheduler or {}, facts or {}
    found = {f"diffusion.{name}": scheduler[name] for name in _DIFFUSION if name in scheduler}
    return found | ({"cape": facts["cape"]} if "cape" in facts else {})


def _open_workdir(path: str, weights: str, part: str) -> _Stored:
    """A part from a checkpoint of an earlier run; its optimizer is left alone."""
    place = runs.locate(Path(path))
    if place is None:
        raise UserError(
            f"config.init.workdir = {path} holds no checkpoints/ beside a config.json; expected "
            "a training work directory or one checkpoint in it."
        )
    workdir, step = place
    config = runs.read_config(workdir)
    earlier = eschernet.from_config(config)
    stored = run_params.open_checkpoint(workdir, step, weights)
    source = f"{workdir} step {stored.step}"
    return _Stored(
        source=source if part == "vae" else f"{source} {stored.weights}",
        sizes=_sizes(earlier, part),
        shapes={path: shape for path, shape in stored.shapes.items() if path[0] == part},
        read=stored.read,
        trained_for={
            "cape": config.cape,
            **{f"diffusion.{name}": config.diffusion[name] for name in _DIFFUSION},
        },
    )


def _sizes(model: EscherNet, part: str) -> Any:
    """The config record of a part; None for a model without it."""
    module = {"unet": model.unet, "image_encoder": model.encoder, "vae": model.codec}[part]
    return getattr(module, "config", None)


def _fitting(
    stored: _Stored, part: str, wanted: dict[ParamPath, Any], model: EscherNet, config: ConfigDict
) -> list[ParamPath]:
    """Paths of the tensors to take; UserError with all that differs, unless it may differ."""
    ours = _sizes(model, part)
    sizes = [
        f"config.{_config_group(part)}.{field.name}: {theirs} there, {needed} in this model"
        for field in dataclasses.fields(ours)
        if stored.sizes is not None
        and (theirs := getattr(stored.sizes, field.name)) != (needed := getattr(ours, field.name))
    ]
    fitting, tensors = [], []
    for path, leaf in wanted.items():
        if path not in stored.shapes:
            tensors.append(f"tensor {_name(path)} {list(leaf.shape)} is missing")
        elif stored.shapes[path] != tuple(leaf.shape):
            found = list(stored.shapes[path])
            tensors.append(f"tensor {_name(path)} is {found}; must be {list(leaf.shape)}")
        else:
            fitting.append(path)
    tensors += [
        f"tensor {_name(path)} {list(shape)} is surplus"
        for path, shape in stored.shapes.items()
        if path not in wanted
    ]
    differences = sizes + tensors
    partial = config.init.allow_partial and part != "vae"
    if differences and not partial:
        listed = "".join(f"\n  - {line}" for line in differences)
        remedy = (
            ""
            if part == "vae"
            else (
                " With config.init.allow_partial=True, tensors that do not fit are left at "
                "initialisation."
            )
        )
        raise UserError(
            f"The {part} in {stored.source} is of another network; {len(differences)} "
            f"difference(s) found:{listed}\nChange the config to the sizes there, or take other "
            f"weights.{remedy}"
        )
    _warn(stored, part, sizes, config)
    return fitting


def _warn(stored: _Stored, part: str, sizes: list[str], config: ConfigDict) -> None:
    """Logs what does not hinder loading, but makes the numbers mean something else here."""
    lines = list(sizes)
    if part == "unet":
        lines += [
            f"config.{name}: {theirs} there, {ours} in this run"
            for name, theirs in stored.trained_for.items()
            if theirs != (ours := operator.attrgetter(name)(config))
        ]
    for line in lines:
        log.warning("%s from %s: %s", part, stored.source, line)


def _config_group(part: str) -> str:
    return "latents.vae" if part == "vae" else _FIELDS[part]


def _starting_point(
    part: str, stored: _Stored | None, taken: set[ParamPath], wanted: dict[ParamPath, Any]
) -> StartingPoint:
    left = {path: leaf for path, leaf in wanted.items() if path not in taken}
    ignored = [_name(path) for path in stored.shapes if path not in taken] if stored else []
    return StartingPoint(
        part=part,
        source=stored.source if stored else RANDOM,
        loaded=_count(leaf for path, leaf in wanted.items() if path in taken),
        initialised=_count(left.values()),
        left=tuple(map(_name, left)),
        ignored=(*(stored.unused if stored else ()), *ignored),
    )


def _count(leaves: Iterable[Any]) -> tuple[int, int]:
    leaves = list(leaves)
    return len(leaves), names.count_parameters(leaves)


def _name(path: ParamPath) -> str:
    return "/".join(path)


def _summary(tensors: Sequence[str], count: tuple[int, int] | None = None) -> str:
    """How many, and the first few by name."""
    if not tensors:
        return "0"
    size = f" ({count[1]:,} parameters)" if count else ""
    rest = ", ..." if len(tensors) > _MOST_NAMES else ""
    return f"{len(tensors):,}{size}: {', '.join(tensors[:_MOST_NAMES])}{rest}"


def _like(shapes: Params, flat: dict[ParamPath, np.ndarray]) -> Params:
    """The tree of those arrays, with the empty parts of `shapes` kept."""
    return {part: {} for part in shapes} | traverse_util.unflatten_dict(flat)
