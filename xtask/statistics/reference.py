#!/usr/bin/env python3
"""Figures by scipy and numpy, with which tsunami-core's statistics are compared.

Prints JSON, which `tsunami-core/tests/fixtures/statistics.json` holds. With the name of such a file it sees whether the
figures there are those of today: `cargo xtask statistics` does so.

The samples are

- sleep: hours of sleep that ten patients gained by one drug more than by another. "Student" (W. S. Gosset), "The
  probable error of a mean", Biometrika 6 (1908), pp. 1-25.
- maize: by how much the crossed plant of a pair was higher than the self-fertilised one, in eighths of an inch, of 15
  pairs of Zea mays. C. Darwin, "The effects of cross and self fertilisation in the vegetable kingdom" (1876), table
  XCVII; R. A. Fisher, "The design of experiments" (1935), chapter III.
"""

import json
import math
import sys

import numpy
import scipy
from scipy import stats

SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
UNTIED = [1.83, 0.50, -1.62, 2.48, 1.68, 1.88, -1.55, 3.06, 1.30, -0.31, 0.87, 2.21]
RESAMPLES = 100_000


def interval(low, high):
    return {"low": float(low), "high": float(high)}


def mean(values, confidence):
    test = stats.ttest_1samp(values, 0.0)
    bounds = test.confidence_interval(confidence)
    return {
        "mean": float(numpy.mean(values)),
        "standard_error": float(stats.sem(values)),
        "degrees_of_freedom": float(test.df),
        "interval": interval(bounds.low, bounds.high),
        "p_value": float(test.pvalue),
    }


def ranks(values):
    values = numpy.array(values)
    kept = values[values != 0.0]
    exact = len(kept) == len(values) <= 50 and len(set(abs(kept))) == len(kept)
    test = stats.wilcoxon(values, zero_method="wilcox", correction=False, method="exact" if exact else "asymptotic")
    return {"statistic": float(test.statistic), "p_value": float(test.pvalue), "n": len(kept)}


def bootstrap(values, statistic):
    result = stats.bootstrap(
        (values,), statistic, n_resamples=RESAMPLES, confidence_level=0.95, method="percentile", rng=1, batch=10_000
    )
    return interval(*result.confidence_interval)


def power(effect, rounds):
    """Of a paired t test of log ratios, 5 % two-sided, where trials have 2 % noise."""
    freedom = rounds - 1
    center = numpy.log1p(effect) / (0.02 * numpy.sqrt(2)) * numpy.sqrt(rounds)
    limit = stats.t.ppf(0.975, freedom)
    return float(stats.nct.sf(limit, freedom, center) + stats.nct.cdf(-limit, freedom, center))


def figures():
    difference = [round(after - before, 6) for before, after in zip(SLEEP_1, SLEEP_2)]
    samples = {"sleep": difference, "maize": MAIZE, "untied": UNTIED}
    return {
        "scipy": scipy.__version__,
        "samples": [
            {
                "name": name,
                "values": [float(value) for value in values],
                "t_95": mean(values, 0.95),
                "t_99_9": mean(values, 0.999),
                "wilcoxon": ranks(values),
                "bootstrap_mean": bootstrap(values, numpy.mean),
                "bootstrap_sd": bootstrap(values, lambda x, axis: numpy.std(x, axis=axis, ddof=1)),
                "sd": float(numpy.std(values, ddof=1)),
                "mad": float(stats.median_abs_deviation(values)),
                "quantile_10": float(numpy.quantile(values, 0.1)),
            }
            for name, values in samples.items()
        ],
        "t_quantiles": [
            {"confidence": confidence, "freedom": freedom, "quantile": float(stats.t.ppf((1 + confidence) / 2, freedom))}
            for confidence in [0.5, 0.95, 0.99995]
            for freedom in [1, 2, 7, 38, 1000]
        ],
        "f_p_values": [
            {"ratio": ratio, "above": above, "below": below, "p_value": float(stats.f.sf(ratio, above, below))}
            for ratio in [0.3, 4.0, 200.0]
            for above in [1, 2]
            for below in [2, 8, 300]
        ],
        "power_of_paired_t": [
            {"effect": effect, "rounds": rounds, "power": power(effect, rounds)}
            for effect in [0.01, 0.02, 0.03, 0.05]
            for rounds in [5, 10, 20]
        ],
    }


def same(saved, found):
    if isinstance(saved, dict):
        return saved.keys() == found.keys() and all(same(saved[key], found[key]) for key in saved)
    if isinstance(saved, list):
        return len(saved) == len(found) and all(map(same, saved, found))
    if isinstance(saved, float):
        return math.isclose(saved, found, rel_tol=1e-9, abs_tol=1e-12)
    return saved == found


def main():
    found = figures()
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as saved:
            if not same(json.load(saved), found):
                sys.exit(f"scipy {scipy.__version__} has other figures than {sys.argv[1]}")
        print(f"scipy {scipy.__version__} has the figures of {sys.argv[1]}")
    else:
        json.dump(found, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
