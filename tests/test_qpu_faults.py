"""The quantum annealer: time-outs, errors, short or unreadable answers, and the fallback."""

import pickle
import time
import warnings

import dwave.cloud.exceptions as cloud
import pytest
import requests
import torch
from helpers import seeded
from qpu_helpers import (
    Listing,
    MockChip,
    empty,
    histogram,
    lacking,
    late,
    later,
    make_rbm,
    moments,
    partial,
    settled,
    shuffled,
    unreadable,
)

from scqbm.samplers import ExactSampler, QPUSampler
from scqbm.samplers.ocean import _chip

pytestmark = pytest.mark.usefixtures("kept_elsewhere")

PASSING = {
    "order": shuffled,
    "partial": partial,
    "histogram": histogram,
    "timeout": requests.exceptions.ReadTimeout("read timed out"),
    "polling": later(cloud.PollingTimeout()),
    "late": late,
    "500": later(cloud.SolverError("internal error", error_code=500)),
    "503": requests.exceptions.HTTPError("503 Service Unavailable"),
    "429": cloud.SolverError("too many requests", error_code=429),
    "failure": later(cloud.SolverFailureError("the processor failed")),
    "connection": ConnectionResetError("connection reset by peer"),
    "lacking": lacking,
    "unreadable": unreadable,
    "empty": empty,
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_changes_nothing(fault):
    """Retried, topped up or put in order: no warning and right draws."""
    chip = MockChip(child=Listing(2.0))
    sampler = QPUSampler(chip, timeout=0.01)
    rbm = make_rbm(4, 5)
    state = settled(sampler, rbm)
    chip.faults = [PASSING[fault]] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = sampler.sample(rbm, 10_000, state, seeded(1))
    assert draws.info["on_qpu"] == 1 and len(chip.faults) < 2
    assert draws.visible.shape == (10_000, 4)
    truth = ExactSampler().sample(rbm, 400_000, None, seeded(2))
    off = moments(draws.visible, draws.hidden) - moments(truth.visible, truth.hidden)
    assert off.abs().max() < 0.04


def test_pauses_grow_between_retries(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    chip = MockChip(faults=[TimeoutError()] * 3)
    QPUSampler(chip, backoff=0.5, retries=3, adapt=False).sample(
        make_rbm(2, 2), 5, None, seeded(0)
    )
    assert pauses == [0.5, 1.0, 2.0]


def test_always_short_answers_say_so_once():
    chip = MockChip(faults=[lambda answer: answer.slice(2, sorted_by=None)] * 100)
    sampler = QPUSampler(chip, adapt=False)
    with pytest.warns(UserWarning, match="fewer reads than asked") as caught:
        for _ in range(2):
            draws = sampler.sample(make_rbm(3, 3), 50, None, seeded(0))
    assert len(caught) == 1 and draws.visible.shape == (50, 3)


def test_after_an_outage_the_fallback_draws_and_the_chip_is_tried_again():
    chip, rbm = MockChip(), make_rbm(3, 3)
    sampler = QPUSampler(chip, retries=1, retry_every=3)
    first = sampler.sample(rbm, 64, None, seeded(0))
    chip.faults = [ConnectionError("unreachable")] * 2
    state, where = first.state, []
    with pytest.warns(UserWarning, match=r"does not answer \(unreachable\).*GibbsSampler") as said:
        for i in range(6):
            draws = sampler.sample(rbm, 64, state, seeded(i))
            state = pickle.loads(pickle.dumps(draws.state))
            where.append(draws.info["on_qpu"])
            assert all(isinstance(v, torch.Tensor | int) for v in state.values())
    assert len(said) == 1
    assert where == [0, 0, 0, 1, 1, 1]
    # what was learnt about the chip is still known
    assert state["n_seen"] == first.state["n_seen"] + 3


def test_the_fallbacks_chains_persist():
    sampler = QPUSampler(MockChip(faults=[TimeoutError()] * 99), retries=0, retry_every=5)
    rbm = make_rbm(3, 3)
    with pytest.warns(UserWarning):
        one = sampler.sample(rbm, 64, None, seeded(0))
    two = sampler.sample(rbm, 64, one.state, seeded(1))
    assert two.state["fallback.age"] == 1


def test_a_refusal_is_not_asked_twice():
    for error in (
        cloud.SolverAuthenticationError(error_code=401),
        cloud.SolverError(error_code=400),
    ):
        chip = MockChip(faults=[error])
        with pytest.warns(UserWarning, match="does not answer"):
            QPUSampler(chip).sample(make_rbm(2, 2), 5, None, seeded(0))
        assert len(chip.asked) == 1


def test_errors_of_ones_own_are_raised():
    chip = MockChip(faults=[ValueError("annealing_time must be a number")])
    with pytest.raises(ValueError, match="annealing_time"):
        QPUSampler(chip).sample(make_rbm(2, 2), 5, None, seeded(0))
    sampler = QPUSampler(MockChip(faults=[TimeoutError("gone")] * 9), fallback="raise", retries=0)
    with pytest.raises(_chip.Outage, match="gone"):
        sampler.sample(make_rbm(2, 2), 5, None, seeded(0))
