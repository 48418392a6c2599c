"""The quantum annealer: its budget of processor time."""

import warnings
from concurrent.futures import Future

import dimod
import dwave.cloud.exceptions as cloud
import pytest
import requests
import torch
from helpers import assert_one_sentence, seeded
from qpu_helpers import (
    ACCESS,
    MockChip,
    late,
    later,
    make_rbm,
)

from scqbm.samplers import QPUSampler

pytestmark = pytest.mark.usefixtures("kept_elsewhere")


def test_the_budget_is_kept_and_survives_a_resume():
    rbm, cap = make_rbm(2, 2), 5.5 * ACCESS
    chip = MockChip()
    sampler = QPUSampler(chip, max_qpu_time=cap, adapt=False)
    state, where = None, []
    with pytest.warns(UserWarning, match="max_qpu_time.*GibbsSampler draws from now on") as said:
        for i in range(60):
            draws = sampler.sample(rbm, 16, state, seeded(i))
            state = draws.state
            where.append(draws.info["on_qpu"])
    assert len(said) == 1
    assert where == [1] * 5 + [0] * 55 and len(chip.asked) == 5
    assert sampler.qpu_seconds == pytest.approx(5 * ACCESS)
    assert state["qpu_seconds"].item() == sampler.qpu_seconds
    resumed = QPUSampler(MockChip(), max_qpu_time=cap, adapt=False)
    with pytest.warns(UserWarning, match="max_qpu_time"):
        resumed.sample(rbm, 16, {**state, "rest": 0, "qpu_seconds": torch.tensor(cap)}, seeded(0))
    assert not resumed._chip.child.asked


def untimed(timing):
    """The same answer with other words about its time."""

    def change(answer):
        answer.info["timing"] = timing
        return answer

    return change


def drawn(sampler, n_queries=30, n_draws=16, rbm=None):
    """Where each query was answered (1: on the processor), and the last draws."""
    state, where = None, []
    for i in range(n_queries):
        draws = sampler.sample(rbm or make_rbm(2, 2), n_draws, state, seeded(i))
        state = draws.state
        where.append(draws.info["on_qpu"])
    return where, draws


def test_a_budget_of_nothing_asks_nothing():
    chip = MockChip()
    with pytest.warns(UserWarning, match="0 s of the 0 s .* `max_qpu_time` allows are spent"):
        where, _ = drawn(QPUSampler(chip, max_qpu_time=0, adapt=False, retry_every=1))
    assert where == [0] * 30 and not chip.asked


@pytest.mark.parametrize("budget", [float("nan"), -1e-9, "1"])
def test_a_budget_is_a_number_of_seconds(budget):
    with pytest.raises(ValueError, match="`max_qpu_time` must be at least 0, not") as caught:
        QPUSampler(MockChip(), max_qpu_time=budget)
    assert_one_sentence(caught.value)


def test_questions_without_an_answer_are_cancelled_and_count():
    futures = []

    def never(answer):
        futures.append(Future())
        return dimod.SampleSet.from_future(futures[-1], lambda future: future.result())

    chip = MockChip(faults=[never] * 1000)
    sampler = QPUSampler(chip, max_qpu_time=0.01, timeout=1e-3, adapt=False, retry_every=1)
    with pytest.warns(UserWarning, match="max_qpu_time.*GibbsSampler draws from now on") as said:
        drawn(sampler)
    assert len(said) == 1 and len(chip.asked) == 1
    assert futures[0].cancelled()
    assert sampler.qpu_seconds == pytest.approx(0.02 + 16 * 220e-6)  # a guess: nothing is known


def test_a_question_without_an_answer_counts_as_the_longest_answer():
    chip = MockChip(faults=[None] + [late] * 1000)
    sampler = QPUSampler(chip, max_qpu_time=4.5 * ACCESS, timeout=1e-3, adapt=False)
    with pytest.warns(UserWarning, match="max_qpu_time"):
        drawn(sampler)
    assert len(chip.asked) == 4 and sampler.qpu_seconds == pytest.approx(4 * ACCESS)


class Solver:
    """Estimates 3 ms a question, as D-Wave's client does it in microseconds."""

    def estimate_qpu_access_time(self, n_qubits, n_reads, **parameters):
        return 3000.0


def test_a_question_without_an_answer_counts_as_the_client_estimates():
    chip = MockChip(faults=[late] * 1000)
    chip.solver = Solver()
    sampler = QPUSampler(chip, max_qpu_time=0.01, timeout=1e-3, adapt=False)
    with pytest.warns(UserWarning, match="max_qpu_time"):
        drawn(sampler)
    assert len(chip.asked) == 3 and sampler.qpu_seconds == pytest.approx(0.009)


class Submitted(Future):
    """A question at D-Wave's client, which gets its id from the processor's queue."""

    def __init__(self, id):
        super().__init__()
        self.id = id
        self.set_exception(cloud.SolverError("no answer", error_code=503))


def submitted(id):
    return lambda answer: dimod.SampleSet.from_future(Submitted(id), lambda f: f.result())


@pytest.mark.parametrize(
    ("fault", "counts"),
    [
        (ConnectionResetError("no network"), False),
        (cloud.SolverAuthenticationError(error_code=401), False),
        (later(cloud.SolverError("too large", error_code=400)), False),
        (submitted(None), False),
        (submitted("1234"), True),
        (later(cloud.SolverError("busy", error_code=503)), True),
        (later(cloud.PollingTimeout()), True),
        (requests.exceptions.ReadTimeout(), True),
        (TimeoutError(), True),
    ],
)
def test_only_what_may_have_run_counts(fault, counts):
    sampler = QPUSampler(MockChip(faults=[fault]), max_qpu_time=1, adapt=False, retries=0)
    with pytest.warns(UserWarning, match="does not answer"):
        drawn(sampler, 1)
    assert (sampler.qpu_seconds > 0) == counts


def test_an_interrupt_takes_the_question_back():
    future = Future()

    def interrupted(answer):
        def done():
            raise KeyboardInterrupt

        answer = dimod.SampleSet.from_future(future)
        answer.done = done
        return answer

    sampler = QPUSampler(MockChip(faults=[interrupted]), max_qpu_time=1, adapt=False)
    with pytest.raises(KeyboardInterrupt):
        drawn(sampler, 1)
    assert future.cancelled() and sampler.qpu_seconds > 0


@pytest.mark.parametrize(
    "timing", [None, {}, {"qpu_access_time": None}, {"qpu_access_time": float("nan")}, "fast"]
)
def test_answers_without_timing_count_as_an_estimate(timing):
    chip = MockChip(faults=[untimed(timing)] * 1000)
    sampler = QPUSampler(chip, max_qpu_time=0.1, adapt=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn(sampler)
    said = [str(w.message) for w in caught]
    assert len(said) == 2 and "does not report its processor time" in said[0]
    assert said[0].startswith("MockDWaveSampler") or said[0].startswith("MockChip")
    assert "max_qpu_time" in said[1]
    assert len(chip.asked) == 4  # of 0.0235 s each
    assert 0.09 < sampler.qpu_seconds < 0.1


def test_without_a_budget_nobody_estimates():
    chip = MockChip(faults=[untimed(None), late, None])
    sampler = QPUSampler(chip, timeout=1e-3, adapt=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(sampler, 2)
    assert sampler.qpu_seconds == pytest.approx(ACCESS)
