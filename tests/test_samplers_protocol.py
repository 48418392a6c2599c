"""What every sampler owes: protocol, seeds, moments, resuming."""

import copy
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from dwave.samplers import SimulatedAnnealingSampler
from dwave.system.testing import MockDWaveSampler
from helpers import (
    all_machines,
    assert_same,
    exact_moments,
    seeded,
    tiny_rbm,
)

from scqbm.samplers import (
    CIMSampler,
    DimodSampler,
    ExactSampler,
    GibbsSampler,
    KaiwuSampler,
    QPUSampler,
    Sampler,
    TemperingSampler,
    effective_number,
)


@dataclass
class Case:
    """A sampler under test.

    ``bias`` is what a moment may be off besides Monte-Carlo error, for samplers that document one.
    """

    make: Callable[[], Sampler]
    bias: float = 0.0
    n_draws: int = 40_000


def kaiwu():
    """The adapter, asking a stand-in at temperature 40 in units of one level of its couplings."""
    stand_in = Path(__file__).with_name("kaiwu_stand_in.py")
    return KaiwuSampler([sys.executable, stand_in, "well", "40"], n_sweeps=20)


def processor():
    """A mock D-Wave processor with chains, whose temperature the adapter has to find."""
    schedule = [*np.geomspace(0.05, 2, 60), *[2.0] * 20]
    chip = MockDWaveSampler(
        topology_type="zephyr",
        topology_shape=[2, 4],
        parameter_warnings=False,
        substitute_sampler=SimulatedAnnealingSampler(),
        substitute_kwargs={"beta_schedule_type": "custom", "beta_schedule": schedule},
    )
    chip.parameters["seed"] = []  # which the mock hands on
    return QPUSampler(chip)


SAMPLERS = {
    "exact": Case(ExactSampler),
    "gibbs": Case(lambda: GibbsSampler(n_sweeps=50)),
    "tempering": Case(lambda: TemperingSampler(n_sweeps=10, n_replicas=4, n_start=60)),
    "annealing": Case(DimodSampler.simulated_annealing),
    "path integral": Case(lambda: DimodSampler.path_integral_annealing(30), n_draws=5000),
    "processor": Case(processor, n_draws=5000),
    "cim": Case(CIMSampler, n_draws=5000),
    "kaiwu": Case(kaiwu, n_draws=5000),
}
all_samplers = pytest.mark.parametrize("name", SAMPLERS)
devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
        ),
    ],
)


@all_samplers
@all_machines
@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_protocol(name, machine, device, dtype):
    sampler, rbm = SAMPLERS[name].make(), tiny_rbm(machine, dtype, device)
    before = copy.deepcopy(rbm)
    draws = sampler.sample(rbm, 40, None, seeded(0, device))
    kept = copy.deepcopy(draws)
    again = sampler.sample(rbm, 40, draws.state, seeded(1, device))
    assert_same(draws, kept)  # draws never alias the state
    for part in ("a", "b", "W"):
        assert torch.equal(getattr(rbm, part), getattr(before, part))
    for answer in (draws, again):
        v, h = answer.visible, answer.hidden
        assert v.shape == (40, rbm.n_visible) and h.shape == (40, rbm.n_hidden)
        assert v.dtype == h.dtype == dtype and v.device == h.device == rbm.W.device
        assert set(h.unique().tolist()) <= {0.0, 1.0}
        assert v.isfinite().all() if rbm.gaussian else set(v.unique().tolist()) <= {0.0, 1.0}
        assert all(isinstance(x, torch.Tensor | int) for x in answer.state.values())
        assert all(isinstance(x, float) for x in answer.info.values())
        assert answer.weights is None or answer.weights.shape == (40,)


@all_samplers
@all_machines
def test_seeds(name, machine):
    sampler, rbm = SAMPLERS[name].make(), tiny_rbm(machine)
    one, same, other = (sampler.sample(rbm, 64, None, seeded(seed)) for seed in (0, 0, 1))
    assert_same(one, same)
    assert not torch.equal(one.visible, other.visible)
    other = sampler.sample(rbm, 64, one.state, seeded(2))
    assert not torch.equal(one.visible, other.visible)


@all_samplers
@all_machines
def test_moments(name, machine):
    """Against enumeration, within 5 standard errors."""
    case, rbm = SAMPLERS[name], tiny_rbm(machine)
    draws = case.make().sample(rbm, case.n_draws, None, seeded(0))
    products = (draws.visible.unsqueeze(2) * draws.hidden.unsqueeze(1)).flatten(1)
    sampled = torch.cat([draws.visible, draws.hidden, products], 1)
    weights = torch.ones(len(sampled)) if draws.weights is None else draws.weights
    weights = weights / weights.sum()
    exact = torch.cat([m.flatten() for m in exact_moments(rbm)])
    error = sampled.std(0) / effective_number(weights, len(sampled)) ** 0.5
    assert ((weights @ sampled - exact).abs() < 5 * error + case.bias + 1e-6).all()


@all_samplers
@all_machines
def test_halting_and_resuming_changes_nothing(name, machine, tmp_path):
    """The state goes through a file to a sampler made anew; draws and random numbers agree."""
    rbm, generator = tiny_rbm(machine), seeded(0)
    sampler, state = SAMPLERS[name].make(), None
    for _ in range(3):
        state = sampler.sample(rbm, 16, state, generator).state
    torch.save({"state": state, "generator": generator.get_state()}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed, resumed_state, resumed_generator = SAMPLERS[name].make(), loaded["state"], seeded(9)
    resumed_generator.set_state(loaded["generator"])
    for _ in range(2):
        whole = sampler.sample(rbm, 16, state, generator)
        part = resumed.sample(rbm, 16, resumed_state, resumed_generator)
        assert_same(whole, part)
        state, resumed_state = whole.state, part.state


@pytest.mark.parametrize("names", itertools.permutations(("exact", "gibbs", "tempering"), 2))
def test_another_samplers_state_is_no_obstacle(names):
    rbm = tiny_rbm("bits")
    state = SAMPLERS[names[0]].make().sample(rbm, 16, None, seeded(0)).state
    SAMPLERS[names[1]].make().sample(rbm, 16, state, seeded(0))
