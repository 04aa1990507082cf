"""The inspect command: which scenes it shows, and that --help is instant."""

import subprocess
import sys

from data_prep.inspect import __main__ as inspect


def test_noted_scenes_come_first_and_the_others_are_spread():
    assert inspect.choose_scenes(range(10), [7, 3, 7], 6) == [7, 3, 0, 2, 5, 8]
    assert inspect.choose_scenes(range(3), [], 12) == [0, 1, 2]
    assert inspect.choose_scenes([], [4], 1) == [4]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from data_prep.inspect import __main__ as i;"
        "i.argument_parser().format_help();"
        "print([m for m in ('jax', 'numpy', 'cv2', 'tensorflow_datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
