"""Runs any command by one name: `escherjax VERB ...` is `python -m escherjax.VERB ...`."""

from __future__ import annotations

import difflib
import runpy
import sys

from escherjax.errors import EXIT_OK, EXIT_USER_ERROR

# What each command does, in the order in which a newcomer needs them.
VERBS = {
    "sample": "generate new views of a scene or a photo",
    "demo": "open a web page that does the same",
    "train": "train a network, or continue a run",
    "evaluate": "score a network by a published protocol or on held-out scenes",
    "compare": "compare evaluations scene by scene",
    "export": "write a PyTorch/diffusers pipeline folder",
    "checkpoints": "list and verify the checkpoints of a run",
    "compile": "compile ahead of time; report memory, FLOPs and collectives of each chip",
}


def main() -> None:
    """Runs the command that the first argument names, as if it had been started by itself.

    Exits with the code of that command, with 0 after `--help` or `--version`, and with 2 for an
    unknown or missing command.
    """
    verb, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if verb == "--version":
        import escherjax

        print(f"escherjax {escherjax.__version__}")
    elif verb in ("-h", "--help"):
        print(_help())
    elif verb in VERBS:
        sys.argv = [f"escherjax {verb}", *arguments]
        _run(f"escherjax.{verb}")
    else:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(
            f"error: the command must be one of {', '.join(VERBS)}, got {verb!r}.{hint}",
            file=sys.stderr,
        )
        sys.exit(EXIT_USER_ERROR)
    sys.exit(EXIT_OK if len(sys.argv) > 1 else EXIT_USER_ERROR)


def _run(module: str) -> None:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "escherjax":
            raise
        sys.exit(
            f"error: the package {error.name!r} is not installed in {sys.prefix}. Activate the "
            "environment that escherjax was installed into, or run: pip install escherjax"
        )


def _help() -> str:
    width = max(map(len, VERBS))
    lines = (f"  {verb:{width}}  {purpose}" for verb, purpose in VERBS.items())
    return "\n".join(
        [
            "usage: escherjax VERB [...]    (python -m escherjax.VERB is the same)",
            "",
            *lines,
            "",
            "escherjax VERB --help lists the options of a command, python -m data_prep.FORMAT",
            "--help those of an importer; escherjax --version prints the version.",
        ]
    )


if __name__ == "__main__":
    main()
