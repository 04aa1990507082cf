"""Distances between sets of features are their definitions."""

import itertools

import numpy as np
import pytest
from scipy.linalg import sqrtm

from escherjax.errors import UserError
from escherjax.metrics.distribution import frechet_distance, kernel_distance


@pytest.fixture
def features(rng):
    mixing = rng.normal(size=(5, 5))
    return rng.normal(size=(40, 5)) @ mixing, 0.5 + rng.normal(size=(30, 5))


def test_frechet_distance_is_the_matrix_formula(features):
    a, b = features
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(cov_a @ cov_b))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)  # two ways to a root


def test_frechet_distance_of_a_shift_is_its_square_even_with_few_vectors(rng):
    a = rng.normal(size=(4, 9))  # covariances without full rank
    np.testing.assert_allclose(frechet_distance(a, a + 2), 4 * 9, rtol=1e-6)


def test_kernel_distance_is_the_double_sum(features):
    a, b = features

    def kernel(x, y):
        return (np.dot(x, y) / 5 + 1) ** 3

    expected = (
        np.mean([kernel(x, y) for x, y in itertools.permutations(a, 2)])
        + np.mean([kernel(x, y) for x, y in itertools.permutations(b, 2)])
        - 2 * np.mean([kernel(x, y) for x in a for y in b])
    )
    np.testing.assert_allclose(kernel_distance(a, b), expected, rtol=1e-9)  # sums in another order


def test_kernel_distance_of_one_distribution_is_zero_on_average(rng):
    values = [kernel_distance(*rng.normal(size=(2, 20, 3))) for _ in range(200)]
    # unbiased: within 4 standard errors of zero, where half of the values are negative
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)
    assert 0.2 < np.mean(np.array(values) < 0) < 0.9


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance])
def test_features_that_do_not_fit_are_refused(metric):
    with pytest.raises(UserError, match=r"\[N, D\] and .*\(1, 3\) and \(5, 4\)"):
        metric(np.zeros((1, 3)), np.zeros((5, 4)))
    with pytest.raises(UserError, match="N and M at least 2"):  # one has no covariance
        metric(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(UserError, match="NaN or infinity"):
        metric(np.zeros((3, 3)), np.full((3, 3), np.nan))
