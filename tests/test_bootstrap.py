"""Bootstrap intervals over scenes equal SciPy's."""

import numpy as np
import pytest
from scipy import stats

from escherjax.errors import UserError
from escherjax.reports import summary
from escherjax.reports.summary import interval, paired_interval

SCIPY_NAMES = {"bca": "BCa", "percentile": "percentile"}


def skewed(rng, size=13):
    return 20 + np.exp(rng.normal(size=size))


@pytest.mark.parametrize("method", list(SCIPY_NAMES))
@pytest.mark.parametrize("size", [2, 13])
def test_interval_is_scipys(rng, method, size):
    values = skewed(rng, size)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=0.9,
        n_resamples=2000,
        method=SCIPY_NAMES[method],
        rng=np.random.default_rng(5),
    ).confidence_interval
    mean, low, high = interval(values, 0.9, seed=5, resamples=2000, method=method)
    assert mean == values.mean()
    # the same draws; float64 sums in another order
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)
    assert low < mean < high


def test_paired_interval_is_of_the_differences_and_narrower_than_either(rng):
    hard = skewed(rng, 30) * 3
    a, b = hard + 0.2 + 0.1 * rng.normal(size=30), hard
    mean, low, high = paired_interval(a, b)
    assert (mean, low, high) == interval(a - b)
    assert 0 < low < mean < high and high - low < 0.1 * np.diff(interval(a)[1:])[0]


def test_same_seed_same_interval_and_chunks_do_not_matter(rng, monkeypatch):
    values = skewed(rng)
    whole = interval(values, resamples=500)
    assert interval(values, resamples=500) == whole
    assert interval(values, resamples=500, seed=1) != whole
    monkeypatch.setattr(summary, "_MOST_AT_ONCE", 7 * len(values))
    assert interval(values, resamples=500) == whole


def test_default_covers_the_mean_about_as_often_as_it_says(rng):
    # 300 samples of 30 scenes: coverage has a standard error of 1.3 %; BCa of a normal mean at
    # this size is known to cover slightly less than 95 %
    samples = rng.normal(size=(300, 30))
    bounds = [interval(sample, resamples=500)[1:] for sample in samples]
    covered = np.mean([low <= 0 <= high for low, high in bounds])
    assert 0.89 <= covered <= 0.98


def test_one_scene_says_nothing_of_others_and_equal_scenes_everything():
    mean, low, high = interval([3.5])
    assert mean == 3.5 and np.isnan(low) and np.isnan(high)
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(UserError, match=r"\[S\].*shape \(0,\)"):
        interval([])
    with pytest.raises(UserError, match=r"scenes \[1, 2\] are not finite \(2 of 3\)"):
        interval([1.0, np.nan, np.inf])
    with pytest.raises(UserError) as refused:
        interval([1.0, 2.0], confidence=95, resamples=0, method="BCA")
    for text in (
        "confidence must be above 0",
        "got 95",
        "resamples must be at least 1",
        "one of bca, percentile, got 'BCA'",
    ):
        assert text in str(refused.value)
    with pytest.raises(UserError, match="one pair a scene"):
        paired_interval([1.0, 2.0], [1.0])
