"""The built-in search algorithms, Optuna behind them, and the importance of hyperparameters."""

import random
import statistics
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState
from pydantic import TypeAdapter

from sweeps.search.algorithms import MAX_TRIALS, MIN_TRIALS, Grid, RandomSearch, TreeParzen, importances
from sweeps.search.base import AlgorithmSpec, Choice, Dimension, LogUniform, Space, Tried, Uniform
from sweeps.search.optuna_studies import study_of, trial_seed


def space(text: str) -> Space:
    result: Space = TypeAdapter(Space).validate_json(text)
    return result


Objective = Callable[[dict[str, Any]], float]


def play(algorithm: AlgorithmSpec, dimensions: Space, trials: int, objective: Objective, seed: int = 0) -> list[Tried]:
    """A search in which every trial ends before the next one is proposed."""
    tried: list[Tried] = []
    while len(tried) < trials:
        (params,) = algorithm.propose(dimensions, seed, tried, 1)
        tried.append(Tried(params, "finished", objective(params)))
    return tried


def params_of(tried: list[Tried]) -> list[Any]:
    return [one.params for one in tried]


def test_a_grid_follows_the_order_of_the_file() -> None:
    points = space('{"b": {"choice": ["x", "y"]}, "a": {"int": [1, 3]}}')
    walked = Grid().propose(points, 0, [], 7)
    assert walked == [
        {"b": "x", "a": 1},
        {"b": "x", "a": 2},
        {"b": "x", "a": 3},
        {"b": "y", "a": 1},
        {"b": "y", "a": 2},
        {"b": "y", "a": 3},
    ]
    assert Grid().size(points) == 6
    tried = [Tried(params, "running") for params in walked]
    assert Grid().propose(points, 0, tried[:4], 7) == walked[4:]
    assert Grid().propose(points, 0, tried, 7) == []


def test_a_grid_refuses_continuous_ranges() -> None:
    problems = dict(Grid().check(space('{"a": {"int": [1, 3]}, "b": {"uniform": [0, 1]}}')))
    assert problems == {"b": "a grid needs {choice: [...]} or {int: [low, high]}, got {uniform: ...}"}


def test_a_huge_grid_is_not_built_in_memory() -> None:
    huge = space('{"a": {"int": [0, 1000000000]}, "b": {"int": [0, 1000000000]}}')
    assert Grid().propose(huge, 0, [Tried({}, "running")] * 3, 1) == [{"a": 0, "b": 3}]


def test_random_search_ignores_results() -> None:
    dimensions = space('{"a": {"uniform": [0, 1]}}')
    good = play(RandomSearch(), dimensions, 20, lambda params: 1.0)
    stopped = [Tried(one.params, "stopped", 0.5, 3) for one in good]
    failed = [Tried(one.params, "failed") for one in good]
    expected = RandomSearch().propose(dimensions, 0, good, 5)
    assert RandomSearch().propose(dimensions, 0, stopped, 5) == expected
    assert RandomSearch().propose(dimensions, 0, failed, 5) == expected
    assert RandomSearch().propose(dimensions, 1, good, 5) != expected


def test_random_search_does_not_depend_on_the_size_of_batches() -> None:
    dimensions = space('{"a": {"uniform": [0, 1]}}')
    values = RandomSearch().propose(dimensions, 3, [], 200)
    assert params_of(play(RandomSearch(), dimensions, 200, lambda params: 0.5, seed=3)) == values
    assert len({params["a"] for params in values}) == 200, "no batch repeats another one"
    assert 0.4 < statistics.fmean(params["a"] for params in values) < 0.6


@pytest.mark.parametrize("split", [1, 4, 7])
def test_tpe_does_not_depend_on_which_trials_are_proposed_together(split: int) -> None:
    dimensions = space('{"a": {"uniform": [0, 1]}, "b": {"int": [1, 9]}}')
    tried = play(TreeParzen(), dimensions, 20, lambda params: params["a"])
    eight = TreeParzen().propose(dimensions, 0, tried, 8)
    running = [Tried(params, "running") for params in eight[:split]]
    assert TreeParzen().propose(dimensions, 0, tried + running, 8 - split) == eight[split:]


def test_batches_of_one_seed_differ() -> None:
    """A sampler that is created again with the same seed would repeat its draws."""
    dimensions = space('{"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}')
    for algorithm in (TreeParzen(), RandomSearch()):
        tried: list[Tried] = []
        for _ in range(8):
            tried += [Tried(params, "finished", 0.5) for params in algorithm.propose(dimensions, 0, tried, 8)]
        assert len({tuple(one.params.values()) for one in tried}) == 64


def test_trial_seeds_differ_between_searches_and_trials() -> None:
    assert len({trial_seed(seed, number) for seed in range(50) for number in range(200)}) == 10_000


def test_the_order_of_the_file_has_no_effect_on_optuna() -> None:
    one = space('{"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}')
    other = space('{"b": {"uniform": [0, 1]}, "a": {"uniform": [0, 1]}}')
    for algorithm in (TreeParzen(startup_trials=5), RandomSearch()):
        tried = play(algorithm, one, 12, lambda params: params["a"])
        assert params_of(play(algorithm, other, 12, lambda params: params["a"])) == params_of(tried)


MIXED = """{
  "a": {"uniform": [0, 1]},
  "b": {"loguniform": [1e-5, 1]},
  "c": {"int": [1, 20]},
  "d": {"choice": ["x", null, 2.5]},
  "e": {"choice": ["only"]}
}"""
MIXED_IN_OPTUNA = {
    "a": FloatDistribution(0, 1),
    "b": FloatDistribution(1e-5, 1, log=True),
    "c": IntDistribution(1, 20),
    "d": CategoricalDistribution(["x", None, 2.5]),
    "e": CategoricalDistribution(["only"]),
}


def sampler(algorithm: AlgorithmSpec, number: int) -> BaseSampler:
    """The sampler of Optuna that an algorithm stands for."""
    if isinstance(algorithm, TreeParzen):
        return TPESampler(
            n_startup_trials=algorithm.startup_trials,
            n_ei_candidates=24,
            multivariate=True,
            constant_liar=True,
            seed=trial_seed(3, number),
        )
    return RandomSampler(seed=trial_seed(3, number))


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("algorithm", [TreeParzen(), TreeParzen(startup_trials=0), RandomSearch()], ids=str)
def test_proposals_equal_those_of_a_study_that_is_never_rebuilt(algorithm: AlgorithmSpec, batch: int) -> None:
    """The oracle is Optuna's own ask and tell, with trials of every state; one batch runs while one is proposed."""
    study = optuna.create_study(direction="maximize")
    tried: list[Tried] = []
    asked: list[Trial] = []
    for start in range(0, 48, batch):
        proposed = algorithm.propose(space(MIXED), 3, tried, batch)
        for number in range(start, start + batch):
            study.sampler = sampler(algorithm, number)
            asked.append(study.ask(MIXED_IN_OPTUNA))
            assert proposed[number - start] == asked[number].params
        tried += [Tried(params, "running") for params in proposed]
        for number in range(max(start - batch, 0), start):
            params, trial = dict(tried[number].params), asked[number]
            value = round(params["a"] - 0.1 * params["c"], 1)
            if number % 7 == 3:
                study.tell(trial, state=TrialState.FAIL)
                tried[number] = Tried(params, "failed")
            elif number % 3 == 1:
                trial.report(value, step=2 + number % 2)
                study.tell(trial, state=TrialState.PRUNED)
                tried[number] = Tried(params, "stopped", value, 2 + number % 2)
            else:
                study.tell(trial, value)
                tried[number] = Tried(params, "finished", value)


def test_a_study_holds_each_state_as_optuna_records_it() -> None:
    dimensions = space('{"a": {"uniform": [0, 1]}}')
    tried = [
        Tried({"a": 0.1}, "finished", 0.7),
        Tried({"a": 0.2}, "stopped", 0.2, 10),
        Tried({"a": 0.3}, "failed"),
        Tried({"a": 0.4}, "running"),
    ]
    trials = study_of(dimensions, tried).get_trials(deepcopy=False)
    assert [(one.number, one.state.name, one.value, one.last_step, one.params) for one in trials] == [
        (0, "COMPLETE", 0.7, None, {"a": 0.1}),
        (1, "PRUNED", 0.2, 10, {"a": 0.2}),
        (2, "FAIL", None, None, {"a": 0.3}),
        (3, "RUNNING", None, None, {"a": 0.4}),
    ]


OUTSIDE: list[dict[str, Any]] = [
    {"a": 0.9, "b": 0.1, "c": 3, "d": "x"},  # above a narrowed range
    {"a": 0.2, "b": -1.0, "c": 3, "d": "x"},  # not positive on a scale that is logarithmic now
    {"a": 0.2, "b": 0.1, "c": 2.5, "d": "x"},  # not a whole number, as the dimension is now
    {"a": 0.2, "b": 0.1, "c": "x", "d": "x"},  # a choice of a dimension that is a range now
    {"a": 0.2, "b": 0.1, "c": 3, "d": "z"},  # a choice that was removed
    {"a": 0.2, "b": 0.1, "c": 3},  # without a dimension that was added
]
NARROW = """{
  "a": {"uniform": [0, 0.5]},
  "b": {"loguniform": [1e-5, 1]},
  "c": {"int": [1, 20]},
  "d": {"choice": ["x", "y"]}
}"""


@pytest.mark.parametrize("params", OUTSIDE)
def test_trials_outside_the_space_are_left_out(params: dict[str, Any]) -> None:
    dimensions = space(NARROW)
    inside = play(TreeParzen(), dimensions, 15, lambda params: params["a"])
    tried = [*inside[:7], Tried(params, "finished", 9.0), *inside[7:]]
    assert params_of(study_of(dimensions, tried).get_trials(deepcopy=False)) == params_of(inside)  # type: ignore[arg-type]
    with_it = TreeParzen().propose(dimensions, 0, tried, 4)
    instead = [*inside[:7], Tried(inside[0].params, "failed"), *inside[7:]]
    assert with_it == TreeParzen().propose(dimensions, 0, instead, 4), "only its number counts"


def test_values_of_dimensions_that_are_no_longer_searched_are_ignored() -> None:
    dimensions = space(NARROW)
    tried = play(TreeParzen(), dimensions, 15, lambda params: params["a"])
    more = [Tried({**one.params, "z": 1}, "finished", one.value) for one in tried]
    assert TreeParzen().propose(dimensions, 0, more, 4) == TreeParzen().propose(dimensions, 0, tried, 4)


def test_tpe_uses_all_trials_in_a_widened_space() -> None:
    narrow = space('{"a": {"uniform": [0, 0.5]}, "c": {"int": [2, 5]}, "d": {"choice": ["x"]}}')
    wide = space('{"a": {"uniform": [-1, 1]}, "c": {"int": [1, 9]}, "d": {"choice": ["w", "x"]}}')
    tried = play(TreeParzen(), narrow, 40, lambda params: -abs(params["a"] - 0.9))
    assert len(study_of(wide, tried).get_trials(deepcopy=False)) == 40
    while len(tried) < 70:
        (params,) = TreeParzen().propose(wide, 0, tried, 1)
        tried.append(Tried(params, "finished", -abs(params["a"] - 0.9)))
    later = params_of(tried[55:])
    assert statistics.median(abs(params["a"] - 0.9) for params in later) < 0.2, "the optimum lies in the new part"
    assert {params["d"] for params in params_of(tried[40:])} == {"w", "x"}
    assert not all(2 <= params["c"] <= 5 for params in params_of(tried[40:]))


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "finished"},
        {"state": "finished", "value": float("nan")},
        {"state": "stopped", "value": 0.5},
        {"state": "failed", "value": 0.5},
        {"state": "running", "value": 0.5},
    ],
)
def test_inconsistent_trials_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        Tried({}, **fields)


def test_tpe_concentrates_where_the_objective_is_high() -> None:
    """60 trials of an objective with its maximum at a = 0.8: the later half is closer to it than random draws."""
    dimensions = space('{"a": {"uniform": [0, 1]}, "b": {"loguniform": [1e-5, 1]}}')

    def later_half(algorithm: TreeParzen | RandomSearch) -> float:
        tried = play(algorithm, dimensions, 60, lambda params: -abs(params["a"] - 0.8))
        return -statistics.fmean(one.value or 0.0 for one in tried[30:])

    assert later_half(TreeParzen()) < 0.5 * later_half(RandomSearch())


def test_tpe_is_random_until_startup_trials_are_complete() -> None:
    dimensions = space('{"a": {"uniform": [0, 1]}}')
    random_search, late, soon = (
        params_of(play(algorithm, dimensions, 20, lambda params: params["a"]))
        for algorithm in (RandomSearch(), TreeParzen(startup_trials=30), TreeParzen(startup_trials=5))
    )
    assert random_search == late
    assert random_search[:5] == soon[:5]
    assert random_search != soon


def test_tpe_spreads_trials_that_run_at_the_same_time() -> None:
    """40 trials without a result in between: without the constant liar their spread is 0.03 to 0.17 here."""
    dimensions = space('{"a": {"uniform": [0, 1]}}')
    tried = play(TreeParzen(), dimensions, 20, lambda params: -abs(params["a"] - 0.5))
    together = TreeParzen().propose(dimensions, 0, tried, 40)
    assert statistics.pstdev(params["a"] for params in together) > 0.2


def test_tpe_learns_from_trials_that_were_stopped() -> None:
    """Trials far from the maximum at 0.8 are stopped early, with values that are unrelated to it (higher nearer 0)."""
    dimensions = space('{"a": {"uniform": [0, 1]}}')

    def later_half(stop: bool) -> float:
        tried: list[Tried] = []
        distances: list[float] = []
        for _ in range(60):
            (params,) = TreeParzen().propose(dimensions, 0, tried, 1)
            distances.append(abs(params["a"] - 0.8))
            if stop and distances[-1] > 0.3:
                tried.append(Tried(params, "stopped", 1 - params["a"], 5))
            else:
                tried.append(Tried(params, "finished", -distances[-1]))
        return sum(distances[30:]) / 30

    assert later_half(stop=True) < 1.2 * later_half(stop=False)


SPACE: dict[str, Dimension] = {
    "method.smooth_factor": Uniform(uniform=[0.0, 1.0]),
    "method.lr": LogUniform(loguniform=[1e-4, 1e-1]),
    "method.init": Choice(choice=["checkpoint", "random"]),
}


def trials(count: int, slope: float = 1.0) -> list[tuple[dict[str, Any], float]]:
    stream = random.Random(0)
    found = []
    for _ in range(count):
        params: dict[str, Any] = {
            "method.smooth_factor": stream.random(),
            "method.lr": 10 ** stream.uniform(-4, -1),
            "method.init": stream.choice(["checkpoint", "random"]),
        }
        found.append((params, slope * params["method.smooth_factor"]))
    return found


def test_the_most_important_parameter_comes_first_and_shares_sum_to_one() -> None:
    shares = importances(SPACE, trials(60))
    assert next(iter(shares)) == "method.smooth_factor"
    assert shares["method.smooth_factor"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)


def test_the_same_trials_give_the_same_shares() -> None:
    assert importances(SPACE, trials(20)) == importances(SPACE, trials(20))


def test_importance_of_many_trials_is_computed_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    evaluate = FanovaImportanceEvaluator.evaluate

    def counting(self: Any, study: Any, *args: Any, **more: Any) -> dict[str, float]:
        counts.append(len(study.trials))
        return evaluate(self, study, *args, **more)

    monkeypatch.setattr(FanovaImportanceEvaluator, "evaluate", counting)
    many = trials(300)
    shares = importances(SPACE, many, 40)
    assert importances(SPACE, many, 40) == shares
    assert importances(SPACE, many, 41) != shares
    assert shares["method.smooth_factor"] > 0.8
    importances(SPACE, many[:40], 40)
    assert counts == [40, 40, 41, 40]
    assert MAX_TRIALS == 1000


def test_importance_leaves_out_trials_outside_the_space() -> None:
    outside = [({**params, "method.init": "removed"}, 9.0) for params, _ in trials(3)]
    assert importances(SPACE, [*outside, *trials(20)]) == importances(SPACE, trials(20))


def test_too_few_trials_equal_trials_and_no_space_have_no_importance() -> None:
    assert importances(SPACE, trials(MIN_TRIALS - 1)) == {}
    assert importances(SPACE, trials(30, slope=0.0)) == {}
    assert importances({}, trials(30)) == {}
