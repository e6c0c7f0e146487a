"""Mean, spread and paired interval against scipy's own functions."""

import math

import numpy as np
import pytest
from scipy import stats

from convlora.comparison.statistics import paired_difference, spread

OURS = {0: 0.81, 1: 0.84, 2: 0.79, 3: 0.88}
THEIRS = {0: 0.80, 1: 0.80, 2: 0.80, 4: 0.1}


def test_spread():
    values = [0.2, 0.5, 0.9]
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.n == 3
    assert spread([0.3]).sd is None
    assert spread([math.nan, 0.3]).n == 1
    assert spread([math.nan]) is None
    assert spread([]) is None


def test_paired_difference_is_scipys_interval():
    found = paired_difference(OURS, THEIRS)
    test = stats.ttest_rel([OURS[s] for s in (0, 1, 2)], [THEIRS[s] for s in (0, 1, 2)])
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.n == 3
    assert not found.clear
    assert paired_difference(dict.fromkeys(range(4), 0.9) | {0: 0.91}, dict.fromkeys(range(4), 0.5)).clear


def test_too_few_pairs():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    one = paired_difference({0: 0.75}, {0: 0.5, 1: 0.4})
    assert (one.mean, one.low, one.high, one.n, one.clear) == (0.25, None, None, 1, False)
    assert paired_difference({0: math.nan, 1: 0.5}, {0: 1.0, 1: 0.25}).n == 1
