"""Shards written by an Apache Beam pipeline, on whichever runner: any number of machines.

Workers need this package and the source, and must reach --out under the same name. What they send
back is nothing but the notes in OUT/.import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_prep.lib.tasks import ShardTask
from escherjax.errors import StoppedError, UserError


def check_runner(runner: str, flags: Sequence[str]) -> None:
    """Raises UserError if Beam is missing, or does not know the runner or a flag."""
    _options(runner, flags)


def run_tasks(tasks: Sequence[ShardTask], runner: str, flags: Sequence[str]) -> None:
    """Runs every task once, or more often where a runner repeats what failed.

    Raises StoppedError if the pipeline fails.
    """
    import cloudpickle

    beam, options = _options(runner, flags)
    try:
        with beam.Pipeline(options=options) as pipeline:
            # Without Reshuffle a runner may give all shards to one worker.
            _ = (
                pipeline
                | "shards" >> beam.Create([cloudpickle.dumps(task) for task in tasks])
                | "spread" >> beam.Reshuffle()
                | "write" >> beam.Map(_run_pickled)
            )
    except Exception as error:  # of any class, by runner
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "Error: " in line), (lines or [repr(error)])[-1])
        raise StoppedError(
            f"the pipeline of {runner} failed: {reason.strip()[:1000]} Finished shards are kept; "
            "give the same command again to write the others."
        ) from error


def _options(runner: str, flags: Sequence[str]) -> tuple[Any, Any]:
    """(the apache_beam module, PipelineOptions)."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import create_runner
    except ImportError as error:
        raise UserError(
            f"--runner {runner} needs Apache Beam ({error}): pip install 'escherjax[beam]'."
        ) from error
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--runner {runner}: {str(error)[:300]}") from error
    quiet = "--default_sdk_harness_log_level=WARNING"  # the last of a flag counts
    options = PipelineOptions([f"--runner={runner}", quiet, *flags])
    unknown = options.get_all_options(retain_unknown_options=True).keys()
    unknown -= options.get_all_options().keys()
    if unknown:
        raise UserError(f"neither this command nor Beam knows {', '.join(sorted(unknown))}.")
    return apache_beam, options


def _run_pickled(data: bytes) -> None:
    import cloudpickle

    cloudpickle.loads(data).run(lambda _: None)
