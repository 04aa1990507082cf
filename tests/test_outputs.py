"""Where commands write: looked at before the work, and told in one message if it cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest

from escherjax import compare
from escherjax.errors import TRACEBACK_VARIABLE, UserError, run_command
from escherjax.evaluate import __main__ as evaluate
from escherjax.sample import __main__ as sample

COMMANDS = {
    "sample": (sample.main, ["--weights", "nowhere", "--views", "nowhere", "--out"]),
    "evaluate": (
        evaluate.main,
        ["--weights", "nowhere", "--data", "nowhere", "--protocol", "heldout", "--out"],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unusable_out_is_told_before_anything_is_read(tmp_path, command):
    (tmp_path / "file").touch()
    main, arguments = COMMANDS[command]
    for out, reason in (
        (tmp_path / "file", "file is a file; name a folder"),
        (tmp_path / "file" / "x", "leads through .*/file, which is a file"),
        ("/proc/nope/x", "/proc/nope/x cannot be used: "),
        ("/sys/x", "--out /sys/x cannot be used: writing is not allowed there"),
    ):
        with pytest.raises(UserError, match=reason):
            main([*arguments, str(out)])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refused_command_leaves_no_folder(tmp_path, command):
    main, arguments = COMMANDS[command]
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "deep" / "out"):
        with pytest.raises(UserError, match="nowhere"):
            main([*arguments, str(out)])
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_an_unusable_page_is_told_before_the_runs_are_read(tmp_path):
    (tmp_path / "file").touch()
    for out, reason in (
        (tmp_path, "is a folder; name a file in it"),
        (tmp_path / "file" / "x.html", "/file is a file"),
        ("/proc/nope/x.html", "/proc/nope cannot be used"),
    ):
        with pytest.raises(UserError, match=reason):
            compare.main(["nowhere", "nowhere", "--out", str(out)])


def test_what_is_no_record_is_told_in_words(tmp_path):
    for content, reason in (
        (None, "no such file or directory"),
        ("{", "not JSON"),
        ("{}", "no field '"),
        ("[]", "another form"),
    ):
        if content is not None:
            (tmp_path / "x").write_text(content)
        for main, arguments in (
            (compare.main, [str(tmp_path / "x")] * 2),
            (sample.main, ["--repeat", str(tmp_path / "x")]),
        ):
            with pytest.raises(UserError, match=reason) as refusal:
                main(arguments)
            assert "Error(" not in str(refusal.value)


@pytest.fixture
def ended(tmp_path, capsys):
    """(exit code, stderr) of a command that does something to the file system."""

    def run(work):
        with pytest.raises(SystemExit) as end:
            run_command(lambda argv: work() and None, [])
        return end.value.code, capsys.readouterr().err

    return run


def test_what_the_file_system_refuses_is_one_message(tmp_path, ended, monkeypatch):
    (tmp_path / "file").touch()
    for work, code, reason in (
        (lambda: Path("/sys/x").write_text("x"), 2, "error: /sys/x may not be read or written"),
        (lambda: tmp_path.read_text(), 2, f"error: {tmp_path} is a folder"),
        (lambda: (tmp_path / "file" / "x").read_text(), 2, "leads through a file"),
        (lambda: Path("/dev/full").write_text("x"), 1, "stopped: No space left"),
    ):
        monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
        found, text = ended(work)
        assert found == code and reason in text and len(text.splitlines()) == 1, text
        monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
        found, text = ended(work)
        assert found == code and reason in text and "Traceback" in text


def test_a_missing_file_that_nobody_asked_for_keeps_its_traceback(tmp_path):
    script = (
        "from escherjax.errors import run_command\n"
        f"run_command(lambda argv: open({str(tmp_path / 'gone')!r}), [])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr
