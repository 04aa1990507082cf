"""Loads, overrides, checks and compares configs; it knows no field of its own.

A config file defines `get_config(arg="")` and returns an `ml_collections.ConfigDict`. On the
command line `--config NAME[:ARG]` names one, shipped or the user's own, and
`--config.a.b=value` changes one field. `configs/base.py` declares every field with its meaning and
its rule by `field` and `group`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from escherjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Field:
    """A config field as `configs/base.py` declares it."""

    default: Any  # its type is the type of every value; tuples hold items of one type
    meaning: str  # in a few words, with the unit
    at_least: float | None = None  # lower bound, of every item of a tuple
    at_most: float | None = None  # upper bound, likewise
    choices: Sequence[str] = ()  # the only values allowed
    may_be_empty: bool = True  # whether a tuple may be ()
    resumable: bool = False  # may change when a run continues: no step computes anything else
    adjustable: bool = False  # may change too, which is logged: steps then compute something else

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; None if nothing is."""
        if self.choices:
            needed, fits = f"one of {', '.join(map(repr, self.choices))}", value in self.choices
        elif isinstance(value, tuple):
            kinds = {type(item) for item in self.default}
            fits = all({type(item)} == kinds and self._in_range(item) for item in value)
            fits = (fits or not kinds) and (bool(value) or self.may_be_empty)
            number = "" if self.may_be_empty else "one or more "
            names = "/".join(kind.__name__ for kind in kinds)
            needed = f"a tuple of {number}{names}{self._range()}"
        else:
            fits, needed = self._in_range(value), self._range().removeprefix(", each ")
        return None if fits else f"must be {needed}, got {value!r}; meaning: {self.meaning}"

    def _in_range(self, value: Any) -> bool:
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def _range(self) -> str:
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        named = [f"{words} {bound}" for words, bound in bounds if bound is not None]
        return f", each {' and '.join(named)}" if named else ""


@dataclasses.dataclass(frozen=True)
class Group:
    """Fields under one name, and which of the marks of `Field` hold for all of them."""

    meaning: str
    fields: dict[str, Field | Group]
    resumable: bool = False
    adjustable: bool = False

    def config(self) -> ConfigDict:
        """A config of all defaults."""
        return ConfigDict(
            {
                name: item.config() if isinstance(item, Group) else item.default
                for name, item in self.fields.items()
            }
        )

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Field | Group]]:
        """(dotted path, field or group) of everything below, parents first."""
        for name, item in self.fields.items():
            yield prefix + name, item
            if isinstance(item, Group):
                yield from item.walk(f"{prefix}{name}.")

    def marked(self, mark: str) -> tuple[str, ...]:
        """Paths of the fields and groups with a mark, "resumable" or "adjustable"."""
        return tuple(path for path, item in self.walk() if getattr(item, mark))


field = Field  # `configs/base.py` reads better with it


def group(
    meaning: str, resumable: bool = False, adjustable: bool = False, **fields: Field | Group
) -> Group:
    """A `Group` of the fields named by keywords."""
    return Group(meaning, fields, resumable, adjustable)


def load_config(
    name_and_arg: str,
    overrides: Sequence[str] = (),
    check: Callable[[ConfigDict], None] | None = None,
) -> ConfigDict:
    """Loads the config that the command line names, checks every field's rule, and locks it.

    Args:
      name_and_arg: `NAME[:ARG]`; NAME is a shipped config (`6dof`, `configs/6dof.py`) or the path
        of a config file.
      overrides: `--config.a.b=value` arguments, applied in order.
      check: called with the result, to raise UserError for fields that do not fit together.

    Raises:
      UserError: the file is not found, a field is unknown (with the nearest name), or values have
        the wrong type or break their rule; all such values are listed.
    """
    name, _, arg = name_and_arg.partition(":")
    config = config_from_file(name)(arg)
    for override in _joined(overrides):
        _apply_override(config, override)
    config.lock()
    values = _flat(config)
    problems = [
        f"config.{path} {problem}."
        for path, item in _declared().FIELDS.walk()
        if isinstance(item, Field) and path in values and (problem := item.problem(values[path]))
    ]
    if problems:
        raise UserError("\n".join(problems))
    if check is not None:
        check(config)
    return config


def config_from_file(name: str | Path) -> Callable[[str], ConfigDict]:
    """The `get_config` function of a shipped config or a file; variants start from `base`."""
    return _module(_locate(name)).get_config


def _locate(name: str | Path) -> Path:
    """The file of a shipped config's name, or the path itself."""
    path, shipped = Path(name), _shipped_folder()
    if path.is_file() and path.suffix == ".py":
        return path
    if path.suffix in ("", ".py") and str(path.parent) in (".", "configs"):
        file = shipped / f"{path.stem}.py"
        if file.is_file():
            return file
    found = "is not a Python file" if path.exists() else "not found"
    beside = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.name else []
    nearby = f" {path.parent} has {', '.join(beside)}." if beside else ""
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.py")))
    raise UserError(f"--config: {path} {found}.{nearby} Shipped configs: {names}.")


def _shipped_folder() -> Path:
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"  # of a checkout


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} must define get_config(arg) to be a config file.")
    return module


@functools.cache
def _declared() -> ModuleType:
    """`configs/base.py`, which declares the fields."""
    return _module(_shipped_folder() / "base.py")


def to_json(config: ConfigDict) -> str:
    """The resolved config as indented JSON, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """A locked ConfigDict from `to_json`'s text; of another version, its fields may differ."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with fields, got {str(fields)[:80]}")
    config = ConfigDict(_tuples(fields))
    return config.lock()


def differences(
    old: ConfigDict, new: ConfigDict, ignored: Sequence[str] | None = None
) -> list[str]:
    """Lines 'field: old -> new' of the fields that make two runs different experiments.

    Args:
      old, new: the configs; a field that one of them lacks, being of another version, counts as
        switched off there.
      ignored: fields, or parents of fields, that may differ; None for those that `configs/base.py`
        marks resumable or adjustable.
    """
    if ignored is None:
        ignored = _declared().RESUMABLE_FIELDS + _declared().ADJUSTABLE_FIELDS
    return [line for key, line in _changes(old, new) if not _is_among(key, ignored)]


def adjustments(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines as of `differences`, of the fields that may change, but change what is computed."""
    fields = _declared().ADJUSTABLE_FIELDS
    return [line for key, line in _changes(old, new) if _is_among(key, fields)]


def _changes(old: ConfigDict, new: ConfigDict) -> list[tuple[str, str]]:
    """(field, 'field: old -> new') of all fields that differ."""
    before, after = (_flat(from_json(to_json(c))) for c in (old, new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key in before and key in after:
            differ = before[key] != after[key]
        else:
            differ = bool(before.get(key) or after.get(key))
        if differ:
            lines.append((key, f"{key}: {before.get(key)!r} -> {after.get(key)!r}"))
    return lines


def _flat(config: ConfigDict) -> dict[str, Any]:
    return flatten_dict(config.to_dict(), sep=".")


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


# ml_collections.config_flags, which does this too, needs absl's parser and reports an unknown field
# without the nearest name.
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
            f"config.{path} must be of type {type(current).__name__}, such as {current!r}, got "
            f"{text!r}, which is of type {type(value).__name__}."
        )
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
