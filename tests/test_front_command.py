"""`escherjax VERB ...` is the command of that name."""

import runpy
import sys

import pytest

import escherjax
from escherjax.__main__ import VERBS, main


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["escherjax", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_help_lists_every_command_and_version_prints_the_version(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"escherjax {escherjax.__version__}\n"


def test_no_command_shows_the_help_and_is_an_error(monkeypatch, capsys):
    assert run(monkeypatch) == 2
    assert "usage: escherjax VERB" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_nearest_name(monkeypatch, capsys):
    assert run(monkeypatch, "samples") == 2
    error = capsys.readouterr().err
    assert "'samples'" in error and "Did you mean sample?" in error


def test_a_command_is_run_as_its_module_is(monkeypatch, capsys, tmp_path):
    """The same refusal, with the same exit code, as of `python -m escherjax.compare`."""
    folder = str(tmp_path / "none")
    front = run(monkeypatch, "compare", folder, folder, "--out", str(tmp_path / "out.html"))
    expected = capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["x", folder, folder, "--out", str(tmp_path / "out.html")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("escherjax.compare", run_name="__main__")
    assert (front, expected) == (stopped.value.code, capsys.readouterr().err)
    assert front == 2 and folder in expected


def test_a_missing_package_is_one_line(monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'orbax'", name="orbax")

    monkeypatch.setattr(runpy, "run_module", missing)
    message = run(monkeypatch, "train")
    assert message.startswith("error: the package 'orbax' is not installed")
    assert "\n" not in message
