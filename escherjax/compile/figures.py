"""Compiles a program for a topology, caches the result, and formats its figures as text."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from escherjax import files
from escherjax.compile import estimate, programs, topology
from escherjax.errors import UserError
from escherjax.files import whole_file
from escherjax.train import checks

log = logging.getLogger("escherjax.compile")


def compile_for_topology(
    config: ConfigDict,
    name: str,
    program_name: str,
    cache: Path | None = None,
    hlo: Path | None = None,
) -> dict[str, Any]:
    """Returns the figures of `estimate.analyze` for a program on a topology, and their origin.

    The program is always lowered; compilation is skipped where the cache holds the result of the
    same program, compiler and topology, and no HLO text is asked for.

    Args:
        config: a resolved training config.
        name: the topology, such as "v5e:16x16".
        program_name: one of `programs.PROGRAMS`.
        cache: directory of earlier results; None for `~/.cache/escherjax/aot`.
        hlo: file for the compiled program's text, or None.

    Raises:
        UserError: if libtpu is missing, the topology is unknown, the mesh does not fit, the program
            needs more memory than a chip has, or `cache` cannot be written to.
    """
    chip, _ = topology.parse_topology(name)
    devices = topology.topology_devices(name)
    mesh = checks.training_mesh(config, devices)
    log.info("%s: %d x %s, mesh %s", name, len(devices), chip.device_kind, dict(mesh.shape))
    folder = cache or _default_cache()
    with files.output_folder(folder, "--cache"):  # tried before there is a result to lose
        started = time.monotonic()
        program = programs.lower_program(program_name, config, mesh)
        lower_sec = time.monotonic() - started
        versions = {package: importlib.metadata.version(package) for package in ("jax", "libtpu")}
        text = json.dumps([name, versions, program.lowered.as_text()])
        cached = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
        if cached.is_file() and hlo is None:
            log.info("compiled before: %s", cached)
            return json.loads(cached.read_text())
        log.info(
            "lowered in %.0f s; compiling, which takes ten minutes on eight cores at full size, "
            "an hour on two",
            lower_sec,
        )
        started = time.monotonic()
        compiled = _compile(program.lowered)
        result = {
            "topology": name,
            "program": program_name,
            "chips": len(devices),
            "device_kind": chip.device_kind,
            "mesh": dict(mesh.shape),
            "scenes": config.batch_size if program_name == "train" else config.eval.batch_size,
            "accumulation_steps": config.accumulation_steps,
            "remat": config.remat,
            "attention": config.attention,
            "versions": versions,
            "lower_sec": lower_sec,
            "compile_sec": time.monotonic() - started,
            **estimate.analyze(program, compiled, chip, len(devices)),
        }
        with whole_file(cached) as file:
            file.write_text(json.dumps(result, indent=2) + "\n")
    if hlo is not None:
        try:
            hlo.write_text(compiled.as_text())
        except OSError as error:
            raise UserError(
                f"the HLO text could not be written to {hlo} ({error.strerror}). The figures are "
                "cached: the same command without --hlo prints them at once."
            ) from error
    return result


def _compile(lowered: Any) -> Any:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the program does not fit: {error}\nSet config.remat=True, raise "
            "config.accumulation_steps, lower config.batch_size, or use more chips."
        ) from error


def format_report(result: dict[str, Any]) -> str:
    """Returns the figures of `compile_for_topology` as a table for people."""
    memory, flops, times = result["memory"], result["flops"], result["time"]

    def row(name: str, value: float, unit: str, note: str = "") -> str:
        scale = {"GiB": 2**30, "GB": 1e9, "T": 1e12}[unit]
        return f"  {name:<22}{value / scale:10.2f} {unit}{note}"

    lines = [
        f"{result['program']} on {result['topology']}: {result['chips']} x "
        f"{result['device_kind']}, mesh {result['mesh']}",
        f"{result['scenes']} scenes, accumulation_steps {result['accumulation_steps']}, remat "
        f"{result['remat']}; lowered in {result['lower_sec']:.0f} s, compiled in "
        f"{result['compile_sec']:.0f} s",
        "",
        "each chip",
        row("arguments", memory["arguments"], "GiB"),
        row("output, not in place", memory["output"] - memory["aliased"], "GiB"),
        row("temporary", memory["temp"], "GiB"),
        row("program", memory["code"], "GiB"),
        row(
            "together",
            memory["total"],
            "GiB",
            f" of {memory['hbm'] / 2**30:.0f} ({memory['share']:.0%})",
        ),
        row("model FLOPs", flops["model"], "T"),
        row(
            "FLOPs by XLA",
            flops["xla"],
            "T",
            f", and {flops['attention_kernels'] / 1e12:.2f} T in attention kernels",
        ),
        row("bytes of memory", result["bytes"]["hbm"], "GB"),
        row("bytes sent to chips", result["bytes"]["ici"], "GB"),
        "",
        "collective           count    runs    GB      GB sent",
    ]
    lines += [
        f"  {kind['kind']:<18} {kind['count']:5d} {kind['calls']:7d} {kind['bytes'] / 1e9:7.3f} "
        f"{kind['sent_bytes'] / 1e9:9.3f}"
        for kind in result["collectives"]
    ]
    lines += ["largest"] * bool(result["largest_collectives"])
    for one in result["largest_collectives"]:
        others = one.get("arrays", 1) - 1  # results cached by earlier versions do not say
        lines.append(
            f"  {one['kind']} {one['shape']}{f' and {others} smaller' if others else ''} x "
            f"{one['calls']} over {one['chips']} chips: "
            f"{one['source'] or 'an operation that the compiler does not name'}"
        )
    if times is None:
        lines += [
            "",
            f"no estimate of time: in FLOPs by XLA and bytes of memory the loop over "
            f"{result['loop_steps']} steps is counted as one step",
        ]
    else:
        lines += [
            "",
            f"time by data sheet: arithmetic {1e3 * times['compute']:.1f} ms, memory "
            f"{1e3 * times['hbm']:.1f} ms, network {1e3 * times['ici']:.1f} ms",
            f"  overlapped {1e3 * times['overlapped']:.1f} ms (MFU {times['mfu_overlapped']:.0%}), "
            f"one after another {1e3 * times['serial']:.1f} ms (MFU {times['mfu_serial']:.0%})",
        ]
    return "\n".join(lines + [f"warning: {text}" for text in result["warnings"]])


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "escherjax" / "aot"
