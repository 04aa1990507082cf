"""What every protocol shares: checked arguments, checked cases, what the summary stores."""

import json

import numpy as np
import pytest

from escherjax.errors import UserError
from escherjax.evaluate.protocol import MODES, PROTOCOLS, Case, Conventions, Source, make_protocol


def test_every_problem_of_the_arguments_is_listed(tmp_path):
    with pytest.raises(UserError) as error:
        make_protocol("gso30", tmp_path / "nowhere", "true", reference_counts=[0, 2, 2], limit=0)
    for words in (
        "protocol must be one of gso25,",
        "mode must be one of faithful, corrected, got 'true'",
        "nowhere is not a directory",
        "limit must be at least 1 scene, got 0",
        "references must be whole numbers of at least 1, got 0",
        "each of them once, got [0, 2, 2]",
    ):
        assert words in str(error.value)
    with pytest.raises(UserError, match="split = 'test' means nothing to protocol 'rtmv'"):
        make_protocol("rtmv", tmp_path, split="test")
    with pytest.raises(UserError, match=r"each of them once, got \[\]"):
        make_protocol("rtmv", tmp_path, reference_counts=[])


def source(counts=None, limit=None, mode="faithful"):
    return Source("gso25", "", mode, counts, limit)


def read_nothing(request, place):
    poses = np.broadcast_to(np.eye(4, dtype=np.float32), (1, 4, 4)) * place
    empty = np.zeros((1, 8, 8, 3), np.uint8)
    return Case(request.scene_id, 1, empty, poses, poses, None, np.arange(0))


def test_counts_beyond_the_protocol_are_refused_before_anything_is_read():
    with pytest.raises(UserError, match="at most 10, .* got 11.*got 12"):
        source((1, 11, 12)).protocol({}, read_nothing, (1,), {}, max_references=10)


def test_cameras_of_a_case_are_checked():
    made = source().protocol({"good": 1.0, "bad": 2.0}, read_nothing, (1,), {})
    assert made.read("good", 1, 8, "6dof").num_references == 1
    with pytest.raises(UserError, match="references of scene 'bad'.*not rigid"):
        made.read("bad", 1, 8, "6dof")


def test_limit_takes_the_first_scenes():
    made = source(limit=2).protocol({"a": 1, "b": 1, "c": 1}, read_nothing, (1, 2), {})
    assert made.scene_ids() == ["a", "b"] and made.reference_counts == (1, 2)


def test_summary_holds_mode_and_conventions():
    described = [
        source(mode=mode).protocol({"a": 1}, read_nothing, (1,), {"poses": "x"}).describe()
        for mode in MODES
    ]
    assert json.loads(json.dumps(described)) == described
    assert [d["mode"] for d in described] == ["faithful", "corrected"]
    assert [d["conventions"]["prediction"] for d in described] == ["floor", "nearest"]
    assert described[0]["rules"] == {"poses": "x"} and described[0]["num_scenes"] == 1


def test_predictions_are_clipped_and_every_level_survives():
    levels = np.arange(256, dtype=np.uint8)
    exact = (levels.astype(np.float64) + 0.001) / 255
    for rule in ("floor", "nearest"):
        np.testing.assert_array_equal(Conventions(prediction=rule).to_uint8(exact), levels)
        assert Conventions(prediction=rule).to_uint8(np.array([-0.5, 1.5])).tolist() == [0, 255]


def test_naming_the_protocols_loads_no_jax():
    import subprocess
    import sys

    code = (
        "import sys; from escherjax.evaluate.protocol import PROTOCOLS, MODES; "
        "print('jax' in sys.modules, len(PROTOCOLS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(len(PROTOCOLS))]
