"""What the evaluation command refuses, when, and what a refusal leaves behind."""

import pytest

from escherjax import evaluate
from escherjax.errors import UserError


def arguments(weights, data, out, *more):
    return ["--weights", str(weights), "--data", str(data), "--protocol", "heldout",
            "--references", "1", "--metrics", "psnr", "--steps", "1", "--guidance", "1",
            "--batch-size", "1", "--out", str(out), *more]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--sampler", "foo"], "known: ddim"),
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--eta", "2"], "eta = 2"),
        (["--guidance", "nan"], "guidance_scale = nan"),
        (["--guidance-rescale", "2"], "guidance rescale = 2"),
        (["--seed", "-1"], "seed = -1"),
    ],
)
def test_wrong_sampling_is_refused_before_data_and_weights(tmp_path, more, reason):
    with pytest.raises(UserError, match=reason):
        evaluate.main(arguments("nowhere", "nowhere", tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()
