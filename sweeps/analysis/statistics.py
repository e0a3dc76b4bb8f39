"""Statistics of accuracies: estimates, comparisons, trends of curves and changes by class.

Pure functions. Accuracies are fractions of 1; an empty split is NaN. `scipy.stats` is imported when a test is computed,
because its import takes longer than most commands.

Shapes: S and R seeds, E epochs, C columns of scores, K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from scipy import special

from lt_train.metrics import Score

if TYPE_CHECKING:
    from sweeps.analysis.load import TrialRuns

__all__ = [
    "FALSE_DISCOVERY_RATE",
    "ROUNDING",
    "Array",
    "Comparison",
    "CurveTrend",
    "Estimate",
    "Test",
    "Trend",
    "Verdict",
    "best_of_bias",
    "class_gains",
    "compare_trials",
    "curve_trend",
    "estimate",
    "expected_best",
    "match_seeds",
    "oriented",
    "paired",
    "significant",
    "welch",
]

Array = NDArray[np.float64]
Test = Literal["paired", "welch", "none"]
Verdict = Literal["better", "worse", "tied", "undecided"]

ROUNDING = 1e-9
"""Differences of accuracies below this are float64 rounding: one image in a billion."""

LEVEL = 0.001
"""Smallest relevant difference of accuracies: a tenth of a point. Smaller ones count as none, however significant."""

ONE_SEED_LEVEL = 0.005
"""The same where the noise over seeds is unknown: there is one seed, or all seeds differ by the same images."""

MARGIN = 0.01
"""Equivalence margin of extended training: tied only if the 95% interval lies within one point."""

FALSE_DISCOVERY_RATE = 0.05
"""Expected share of false discoveries among the classes reported as changed."""

ROUNDING_VARIANCE = 1 / 12
"""Variance of rounding a count to whole images."""


class Trend(StrEnum):
    """How an accuracy develops with more training."""

    IMPROVING = "improving"
    STABLE = "stable"
    DECLINING = "declining"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval.

    Attributes:
        value: the mean, or a difference of means.
        low, high: ends of the two-sided 95% interval (Student's t over seeds); None for a single run.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A difference of two means with its test.

    Attributes:
        difference: the first minus the second.
        p_value: of the two-sided t test. None for a single run, and where all differences are equal but not zero.
        test: `paired` by seed; `welch` where no seeds are shared; `none` where one run gives no estimate of the noise.
        pairs: seeds compared by a paired test, else 0.
        verdict: `better` or `worse`; `tied` where the 95% interval contains 0; `undecided` where there is no interval
            or all seeds differ by the same images. For extended training, see `paired`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    difference: Estimate
    p_value: float | None
    test: Test
    pairs: int
    verdict: Verdict

    @property
    def behind(self) -> bool:
        """Whether the first is worse or, where no test decides, has the lower mean."""
        return self.verdict == "worse" or (self.verdict == "undecided" and self.difference.value < -ROUNDING)


def estimate(values: Array) -> Estimate | None:
    """Mean of `values [S]` with its 95% interval; None for an empty split."""
    center = float(values.mean())
    if math.isnan(center):
        return None
    if len(values) < 2:
        return Estimate(center)
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(center, center - half, center + half)


def paired(a: Array, b: Array, *, equivalence: bool = False) -> Comparison | None:
    """Compare `a [S]` with `b [S]` by a t test paired by seed; None for an empty split.

    A fixed baseline is given as one value repeated. The p value is None for fewer than two seeds and where all
    differences are equal, because rounding to whole images then hides the noise; it is 1 where all are zero.

    With `equivalence`, the verdict is `better` or `worse` only for a relevant and significant difference
    (`surely_above`), `tied` where the interval lies within `MARGIN` of 0, else `undecided`.
    """
    difference = estimate(a - b)
    if difference is None:
        return None
    p_value: float | None = None
    if difference.low is not None:
        p_value = _without_spread(difference.value) if np.ptp(a - b) < ROUNDING else _paired_p(a, b)
    if equivalence:
        verdict = _equivalence(difference, p_value)
    else:
        verdict = _verdict(difference, p_value)
    tested = difference.low is not None
    return Comparison(difference, p_value, "paired" if tested else "none", len(a) if tested else 0, verdict)


def welch(a: Array, b: Array) -> Comparison | None:
    """Compare `a [S]` with `b [R]`, which share neither seeds nor variance, by Welch's t test; None for an empty split.

    There is no interval and no p value where either has fewer than two runs. Where both groups have no variance, the
    interval has no width and the p value is that of `paired`.
    """
    center = float(a.mean() - b.mean())
    if math.isnan(center):
        return None
    if min(len(a), len(b)) < 2:
        difference, p_value = Estimate(center), None
    elif math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) < ROUNDING:
        difference, p_value = Estimate(center, center, center), _without_spread(center)
    else:
        from scipy import stats

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one of the groups may be constant
            found = stats.ttest_ind(a, b, equal_var=False)
            low, high = found.confidence_interval(0.95)
        difference, p_value = Estimate(center, float(low), float(high)), float(found.pvalue)
    test: Test = "none" if difference.low is None else "welch"
    return Comparison(difference, p_value, test, 0, _verdict(difference, p_value))


def _paired_p(a: Array, b: Array) -> float:
    from scipy import stats

    return float(stats.ttest_rel(a, b).pvalue)


def _without_spread(center: float) -> float | None:
    return 1.0 if abs(center) < ROUNDING else None


def _verdict(difference: Estimate, p_value: float | None) -> Verdict:
    if abs(difference.value) < ROUNDING:
        return "tied"
    if difference.low is None or difference.high is None:
        return "undecided"
    if difference.low <= 0 <= difference.high:
        return "tied"
    if p_value is None:
        return "undecided"
    return "better" if difference.value > 0 else "worse"


def _equivalence(difference: Estimate, p_value: float | None) -> Verdict:
    if _beyond(difference.value, p_value):
        return "better"
    if _beyond(-difference.value, p_value):
        return "worse"
    within = difference.low is not None and difference.high is not None
    return "tied" if within and max(-(difference.low or 0.0), difference.high or 0.0) <= MARGIN else "undecided"


def surely_above(a: Array, b: Array, comparisons: int = 1) -> bool:
    """Whether `a [S]` lies above `b [S]` by more than `LEVEL`, significantly over seeds (95%, Bonferroni)."""
    found = paired(a, b)
    return found is not None and _beyond(found.difference.value, found.p_value, comparisons)


def _beyond(gap: float, p_value: float | None, comparisons: int = 1) -> bool:
    return gap > ONE_SEED_LEVEL if p_value is None else gap > LEVEL and p_value < 0.05 / comparisons


def compare_trials(ours: TrialRuns, theirs: TrialRuns, *, pair: bool = True) -> dict[str, Comparison | None]:
    """`ours` minus `theirs` on test by the names of the scores that both have; None for an empty split.

    Paired by seed. Welch's test where the trials share no seeds, and where `pair` is false because the same seed does
    not mean the same noise, as on different test images.
    """
    a, b, same_seeds = match_seeds(ours, theirs, pair=pair)
    test = paired if same_seeds else welch
    columns = {score.name: column for column, score in enumerate(theirs.scores)}
    return {
        score.name: oriented(test(a[:, column], b[:, columns[score.name]]), score)
        for column, score in enumerate(ours.scores)
        if score.name in columns
    }


def oriented(comparison: Comparison | None, score: Score) -> Comparison | None:
    """A comparison with `better` and `worse` exchanged for a metric of which lower values are better."""
    if comparison is None or score.higher_is_better:
        return comparison
    opposite: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
    return replace(comparison, verdict=opposite.get(comparison.verdict, comparison.verdict))


def match_seeds(
    ours: TrialRuns, theirs: TrialRuns, read: Callable[[TrialRuns], Array] | None = None, *, pair: bool = True
) -> tuple[Array, Array, bool]:
    """Values of both trials, and whether their rows are paired: the shared seeds if there are any, else all seeds.

    A method that trains nothing has one run, which stands for every seed. `read` returns the values `[S, ...]` of a
    trial; by default its scores on test `[S, C]`.
    """
    sides = []
    for trial in (ours, theirs):
        values = trial.values if read is None else read(trial)
        sides.append(dict(zip(trial.seeds, values, strict=True)))
    a, b = sides
    fixed = [len(own) == 1 and not one.trial.method.trains for own, one in ((a, ours), (b, theirs))]
    if all(fixed):
        return np.array(list(a.values())), np.array(list(b.values())), True
    if fixed[0]:
        a = dict.fromkeys(b, *a.values())
    elif fixed[1]:
        b = dict.fromkeys(a, *b.values())
    common = [seed for seed in a if seed in b] if pair else []
    if len(common) > 1 or (common and min(len(a), len(b)) == 1):
        return np.array([a[seed] for seed in common]), np.array([b[seed] for seed in common]), True
    return np.array(list(a.values())), np.array(list(b.values())), False


def expected_best(count: int) -> float:
    """Mean of the largest of `count` standard normal numbers: 0 for one, 1.163 for five."""
    nodes = np.linspace(-9.0, 9.0, 6001)
    density = np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(nodes * count * density * special.ndtr(nodes) ** (count - 1), nodes))


def best_of_bias(values: Array) -> float | None:
    """Expected amount by which the best of `values [S]` exceeds their mean, if seeds are normally distributed.

    The standard deviation is estimated from the same seeds and corrected for its bias (c4). None for one seed or an
    empty split.
    """
    count = len(values)
    if count < 2 or np.isnan(values).any():
        return None
    c4 = math.sqrt(2 / (count - 1)) * math.exp(special.gammaln(count / 2) - special.gammaln((count - 1) / 2))
    return expected_best(count) * float(values.std(ddof=1)) / c4


@dataclass(frozen=True)
class CurveTrend:
    """How an accuracy curve ends.

    Attributes:
        trend: at the last epoch; inconclusive for fewer than four epochs.
        epochs: length of the curve.
        peak, peak_value: epoch (from 1; the later of equal ones) and mean of the highest point.
        last_value: mean after the last epoch.
    """

    trend: Trend
    epochs: int
    peak: int
    peak_value: float
    last_value: float


def curve_trend(curves: Array) -> CurveTrend | None:
    """Trend of `curves [S, E]` at the last epoch; None for an empty split.

    Declining: the last tenth of the epochs lies below the highest tenth before it by more than `LEVEL`, significantly
    over seeds (95% for all tenths together, Bonferroni, because the highest of many is high by chance).
    Improving: the last tenth lies above the fifth before it, by the same measure for one comparison.
    """
    if curves.size == 0 or np.isnan(curves).any():
        return None
    epochs = curves.shape[1]
    mean = curves.mean(axis=0)
    peak = epochs - 1 - int(mean[::-1].argmax())
    rest = (epochs, peak + 1, float(mean[peak]), float(mean[-1]))
    if epochs < 4:
        return CurveTrend(Trend.INCONCLUSIVE, *rest)
    tenth = max(1, round(epochs / 10))
    last, *earlier = (curves[:, max(0, end - tenth) : end].mean(axis=1) for end in range(epochs, 0, -tenth))
    highest = max(earlier, key=np.mean)
    if mean[peak] - mean[-1] > LEVEL and surely_above(highest, last, comparisons=len(earlier)):
        return CurveTrend(Trend.DECLINING, *rest)
    if surely_above(last, curves[:, -3 * tenth : -tenth].mean(axis=1)):
        return CurveTrend(Trend.IMPROVING, *rest)
    return CurveTrend(Trend.STABLE, *rest)


@dataclass(frozen=True)
class ClassGains:
    """Accuracy of one trial minus that of another, by class.

    Attributes:
        gain: difference of the means over seeds `[K]`, as a fraction; NaN for a class without test images.
        p_value: two-sided, of each class alone `[K]`; None where one run gives no estimate of the noise.
        significant: classes that differ at `FALSE_DISCOVERY_RATE` `[K]`.
    """

    gain: Array
    p_value: Array | None
    significant: NDArray[np.bool_]


def class_gains(ours: Array, theirs: Array, images: Array, *, paired: bool) -> ClassGains:
    """Compare accuracies by class, `[S, K]` with `[R, K]`, by a t test of each class.

    Seeds often agree to the image, and a t test would call a single image certain. The variance is therefore at least
    that of rounding to whole images.

    Args:
        ours: accuracies as fractions, by seed and class.
        theirs: the same of the other trial.
        images: test images of each class `[K]`.
        paired: whether equal rows belong to the same seed; else Welch's test.
    """
    gain = ours.mean(axis=0) - theirs.mean(axis=0)
    if min(len(ours), len(theirs)) < 2:
        return ClassGains(gain, None, np.zeros(len(gain), dtype=bool))
    from scipy import stats

    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        least = ROUNDING_VARIANCE / np.asarray(images, dtype=np.float64) ** 2
        if paired:
            variance = np.maximum((ours - theirs).var(axis=0, ddof=1), 2 * least) / len(ours)
            p_value = 2 * stats.t.sf(np.abs(gain) / np.sqrt(variance), len(ours) - 1)
        else:
            spread = [np.sqrt(np.maximum(values.var(axis=0, ddof=1), least)) for values in (ours, theirs)]
            sides = (ours.mean(axis=0), spread[0], len(ours), theirs.mean(axis=0), spread[1], len(theirs))
            p_value = stats.ttest_ind_from_stats(*sides, equal_var=False).pvalue
    return ClassGains(gain, p_value, significant(p_value))


def significant(p_value: Array, rate: float = FALSE_DISCOVERY_RATE) -> NDArray[np.bool_]:
    """Which of `p_value [K]` are significant by the Benjamini-Hochberg procedure; NaN never is.

    On average, at most `rate` of them are false discoveries if tests are independent or positively dependent.
    """
    from scipy import stats

    known = ~np.isnan(p_value)
    found = np.zeros(len(p_value), dtype=bool)
    if known.any():
        found[known] = stats.false_discovery_control(p_value[known]) <= rate
    return found
