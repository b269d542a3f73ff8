"""Spread, Holm and the paired bootstrap, against cases worked by hand and a simulation without a difference."""

import numpy as np
import pytest
from scipy import stats

from framework.grid.results import Spread
from framework.grid.statistics import bootstrap_differences, holm, spread


def of_means(values_KE):
    """Differences that are means over exams."""
    return lambda counts_RE: np.asarray(values_KE) @ counts_RE.T / counts_RE.sum(1)


def test_the_deviation_is_the_sample_standard_deviation():
    # Mean 4; squares of -2, 0, 2 are 8, over n - 1 = 2.
    assert spread([2.0, 4.0, 6.0]) == Spread(mean=4.0, deviation=2.0, count=3)


def test_a_single_seed_has_no_deviation_and_no_seed_has_no_mean():
    assert spread([0.3]) == Spread(0.3, None, 1)
    assert spread([]) is None


def test_holm_equals_an_example_by_hand():
    # In order: 4 x 0.005 = 0.02, 3 x 0.01 = 0.03, 2 x 0.03 = 0.06, 1 x 0.04 = 0.04, which may not be below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_at_most_one_and_leaves_a_single_p_alone():
    assert holm([0.9, 0.6, 0.02]) == pytest.approx([1.0, 1.0, 0.06])
    assert holm([0.04]) == [0.04] and holm([]) == []


def test_holm_corrects_equal_p_values_equally():
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])


def test_three_exams_equal_an_example_by_hand():
    # Differences -1, 1, 3 of three exams. Of the 27 resamples, the sums -3, -1, 1, 3, 5, 7, 9 come 1, 3, 6, 7, 6, 3, 1
    # times, so 4 are not above 0 and 23 not below: p = 2 x 4 / 27. Of 1/27 = 3.7 % each at the ends, the 2.5 % point
    # is -3 / 3 and the 97.5 % point 9 / 3.
    (found,) = bootstrap_differences(of_means([[-1.0, 1.0, 3.0]]), 3, seed=1)
    assert found.value == 1.0
    assert (found.low, found.high) == pytest.approx((-1.0, 3.0))
    assert found.p == pytest.approx(8 / 27, abs=0.02)


def test_p_counts_the_observed_sample_and_is_never_0():
    (found,) = bootstrap_differences(of_means([[1.0, 1.0, 2.0]]), 3, seed=1, bootstrap_samples=99)
    assert found.p == pytest.approx(2 / 100) and found.low >= 1


def test_no_difference_gives_p_1_also_after_rounding():
    rounding = [1e-17, -2e-17, 3e-17, 1e-17]
    for found in bootstrap_differences(of_means([[0.0] * 4, rounding]), 4, seed=1):
        assert found.p == 1.0 and found.value == pytest.approx(0) and (found.low, found.high) == pytest.approx((0, 0))


def test_the_sign_of_a_difference_follows_the_direction_of_the_metric():
    draw = np.random.default_rng(0)
    better = draw.normal(0.5, 1.0, 200)
    up, down = bootstrap_differences(of_means([better, -better]), 200, seed=3)
    assert up.low > 0 > down.high and up.p == down.p < 0.01
    assert (up.low, up.high) == pytest.approx((-down.high, -down.low))


def test_both_sides_are_computed_on_the_same_exams():
    # Exams differ by 100 in difficulty and the two rows by 1 on each: the difference is certain.
    hard_E = np.random.default_rng(0).normal(0.0, 100.0, 50)

    def differences(counts_RE):
        return of_means([hard_E + 1])(counts_RE) - of_means([hard_E])(counts_RE)

    (found,) = bootstrap_differences(differences, 50, seed=1)
    assert (found.low, found.high) == pytest.approx((1, 1)) and found.p < 0.001


def test_every_resample_has_as_many_exams_as_there_are():
    seen = []
    bootstrap_differences(
        lambda counts_RE: (seen.append(counts_RE), counts_RE[None, :, 0])[1], 7, seed=1, bootstrap_samples=50
    )
    counts_RE = np.concatenate(seen[:-1])
    assert counts_RE.shape == (50, 7) and set(counts_RE.sum(1)) == {7.0} and counts_RE.max() > 1
    assert (seen[-1] == 1).all()  # and in the end the exams themselves


def test_resamples_of_many_exams_are_computed_in_chunks(monkeypatch):
    values = np.random.default_rng(0).normal(0.1, 1.0, 40)
    whole = bootstrap_differences(of_means([values]), 40, seed=1, bootstrap_samples=200)
    monkeypatch.setattr("framework.scoring.bootstrap.CHUNK", 400)
    sizes = []

    def differences(counts_RE):
        sizes.append(len(counts_RE))
        return of_means([values])(counts_RE)

    parts = bootstrap_differences(differences, 40, seed=1, bootstrap_samples=200)
    assert max(sizes) == 10
    assert parts[0].value == whole[0].value and parts[0].low == pytest.approx(whole[0].low, abs=0.1)


def test_the_same_seed_gives_the_same_and_another_seed_nearly_the_same():
    values = np.random.default_rng(0).normal(0.1, 1.0, 60)
    first, again = (bootstrap_differences(of_means([values]), 60, seed=5)[0] for _ in range(2))
    other = bootstrap_differences(of_means([values]), 60, seed=6)[0]
    assert first == again != other
    assert first.p == pytest.approx(other.p, abs=0.03)


def test_the_interval_of_a_mean_is_close_to_the_t_interval():
    values = np.random.default_rng(2).normal(0.3, 1.0, 400)
    (found,) = bootstrap_differences(of_means([values]), 400, seed=1)
    by_t = stats.ttest_1samp(values, 0)
    expected = by_t.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_p_is_nearly_uniform_under_no_difference():
    draw = np.random.default_rng(11)
    # 400 comparisons at once, of 80 exams each.
    ps = [
        one.p
        for one in bootstrap_differences(of_means(draw.normal(0, 1, (400, 80))), 80, seed=1, bootstrap_samples=2000)
    ]
    assert stats.kstest(ps, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.085  # 0.05, give or take three standard errors of 0.011
