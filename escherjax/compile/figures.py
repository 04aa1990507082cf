"""One compilation for a topology, kept by what was compiled, and its figures as text."""

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
from escherjax.data.whole_files import whole_file
from escherjax.devices import mesh as sharding
from escherjax.errors import UserError

log = logging.getLogger("escherjax.compile")

_GIB = 2**30


def compile_for_topology(
    config: ConfigDict,
    name: str,
    program_name: str,
    cache: Path | None = None,
    hlo: Path | None = None,
) -> dict[str, Any]:
    """The figures of `estimate.analyze` for a program on a topology, with how they came about.

    Lowering is always done; the compilation is skipped where `cache` holds the result of the same
    program, compiler and topology, and no HLO text is asked for. Raises UserError if libtpu is
    missing, the topology unknown, the mesh does not fit, the program needs more memory than a chip
    has, or `cache` cannot be written to.
    """
    folder = cache or _default_cache()
    with files.output_folder(folder, "--cache"):  # tried before there is a result to lose
        return _compile_or_find(config, name, program_name, folder, hlo)


def _compile_or_find(
    config: ConfigDict, name: str, program_name: str, folder: Path, hlo: Path | None
) -> dict[str, Any]:
    chip, _ = topology.parse_topology(name)
    devices = topology.topology_devices(name)
    mesh = sharding.make_mesh(config, devices)
    log.info("%s: %d x %s, mesh %s", name, len(devices), chip.device_kind, dict(mesh.shape))
    started = time.monotonic()
    program = programs.lower_program(program_name, config, mesh)
    lower_sec = time.monotonic() - started
    versions = {package: importlib.metadata.version(package) for package in ("jax", "libtpu")}
    text = json.dumps([name, versions, program.lowered.as_text()])
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    kept = folder / f"{key}.json"
    if kept.is_file() and hlo is None:
        log.info("compiled before: %s", kept)
        return json.loads(kept.read_text())
    log.info(
        "lowered in %.0f s; compiling: at full size ten minutes on eight cores, an hour on two",
        lower_sec,
    )
    started = time.monotonic()
    compiled = _compile(program.lowered)
    compile_sec = time.monotonic() - started
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
        "compile_sec": compile_sec,
        **estimate.analyze(program, compiled, chip, len(devices)),
    }
    with whole_file(kept) as file:
        file.write_text(json.dumps(result, indent=2) + "\n")
    if hlo is not None:
        try:
            hlo.write_text(compiled.as_text())
        except OSError as error:
            raise UserError(
                f"the HLO text could not be written to {hlo} ({error.strerror}). The figures are "
                "kept: the same command without --hlo prints them at once."
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
            "config.accumulation_steps, lower config.batch_size, or take more chips."
        ) from error


def format_report(result: dict[str, Any]) -> str:
    """The figures of `compile_for_topology` as a table for people."""
    memory, flops, times = result["memory"], result["flops"], result["time"]
    lines = [
        f"{result['program']} on {result['topology']}: {result['chips']} x "
        f"{result['device_kind']}, mesh {result['mesh']}",
        f"{result['scenes']} scenes, accumulation_steps {result['accumulation_steps']}, remat "
        f"{result['remat']}; lowered in {result['lower_sec']:.0f} s, compiled in "
        f"{result['compile_sec']:.0f} s",
        "",
        "each chip               ",
        f"  arguments             {memory['arguments'] / _GIB:10.2f} GiB",
        f"  output, not in place  {(memory['output'] - memory['aliased']) / _GIB:10.2f} GiB",
        f"  temporary             {memory['temp'] / _GIB:10.2f} GiB",
        f"  program               {memory['code'] / _GIB:10.2f} GiB",
        f"  together              {memory['total'] / _GIB:10.2f} GiB of "
        f"{memory['hbm'] / _GIB:.0f} ({memory['share']:.0%})",
        f"  model FLOPs           {flops['model'] / 1e12:10.2f} T",
        f"  FLOPs by XLA          {flops['xla'] / 1e12:10.2f} T, and "
        f"{flops['attention_kernels'] / 1e12:.2f} T in attention kernels",
        f"  bytes of memory       {result['bytes']['hbm'] / 1e9:10.2f} GB",
        f"  bytes sent to chips   {result['bytes']['ici'] / 1e9:10.2f} GB",
        "",
        "collective           count    runs    GB      GB sent",
    ]
    lines += [
        f"  {row['kind']:<18} {row['count']:5d} {row['calls']:7d} {row['bytes'] / 1e9:7.3f} "
        f"{row['sent_bytes'] / 1e9:9.3f}"
        for row in result["collectives"]
    ]
    lines += ["largest"] * bool(result["largest_collectives"])
    lines += [
        f"  {row['kind']} {row['shape']}{_more(row)} x {row['calls']} over {row['chips']} chips: "
        f"{row['source'] or 'an operation that the compiler does not name'}"
        for row in result["largest_collectives"]
    ]
    if times is None:
        lines += [
            "",
            f"no estimate of time: in FLOPs by XLA and bytes of memory the loop over "
            f"{result['loop_steps']} steps is counted as one step",
        ]
        return "\n".join(lines + [f"warning: {text}" for text in result["warnings"]])
    lines += [
        "",
        f"time by data sheet: arithmetic {1e3 * times['compute']:.1f} ms, memory "
        f"{1e3 * times['hbm']:.1f} ms, network {1e3 * times['ici']:.1f} ms",
        f"  overlapped {1e3 * times['overlapped']:.1f} ms (MFU {times['mfu_overlapped']:.0%}), one "
        f"after another {1e3 * times['serial']:.1f} ms (MFU {times['mfu_serial']:.0%})",
    ]
    lines += [f"warning: {text}" for text in result["warnings"]]
    return "\n".join(lines)


def _more(row: dict[str, Any]) -> str:
    others = row.get("arrays", 1) - 1  # results that were kept before do not say
    return f" and {others} smaller" if others else ""


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "escherjax" / "aot"
