"""Hidden units in a transverse field as rings of classical spins, against exact sums."""

import itertools

import numpy as np
import pytest
import torch
from dwave.samplers import SimulatedAnnealingSampler
from dwave.system import EmbeddingComposite
from dwave.system.testing import MockDWaveSampler
from helpers import seeded
from test_transverse import machine

from scqbm.ising import RBM, all_states, bits_to_spins
from scqbm.samplers import DimodSampler, ask, assess, moments
from scqbm.samplers.ocean import _rings


def enumerated(spins):
    """All reads of an Ising problem, the values of its units, and their probabilities."""
    reads = np.array(list(itertools.product([-1, 1], repeat=len(spins.unit))))
    one, other = spins.edges.T
    energy = reads @ spins.fields + (reads[:, one] * reads[:, other]) @ spins.couplings
    p = np.exp(-energy + energy.min())
    return spins.of_units(reads), p / p.sum()


@pytest.mark.parametrize("gamma", [0.3, 1.0, None])
def test_rings_have_the_visible_distribution(gamma, monkeypatch):
    rbm = machine(3, 2, gamma)
    v = all_states(3).double()
    exact = (-rbm.free_energy(v)).log_softmax(0).numpy()

    def largest_error():
        spins = _rings.spins_of(rbm)
        units, p = enumerated(spins)
        rows = [(units[:, :3] == bits_to_spins(s).numpy()).all(1) for s in v]
        return np.abs(np.log([p[row].sum() for row in rows]) - exact).max(), spins

    usual, spins = largest_error()
    monkeypatch.setattr(_rings, "TOLERANCE", 2e-3)
    monkeypatch.setattr(_rings, "LONGEST", 8)  # 19 spins can be enumerated
    small, longer = largest_error()
    assert len(longer.unit) > len(spins.unit)
    assert usual < 2 * 0.02 and small < min(usual, 5e-3)


def test_rings_are_as_long_as_they_need_to_be():
    fields = np.array([5.0, 5.0, 5.0, 1e-3, 0.0])
    lengths = _rings.ring_lengths(np.array([0.0, 1.0, 3.0, 3.0, 1e6]), fields)
    assert lengths.tolist()[0] == 1 and lengths.tolist()[3:] == [1, 1]
    assert 1 < lengths[1] < lengths[2] <= _rings.LONGEST
    assert _rings.ring_lengths(np.array([100.0]), np.array([100.0])).tolist() == [_rings.LONGEST]


def test_without_a_field_there_are_no_rings():
    quantum = machine(4, 3, 0.0)
    for one, two in zip(
        _rings.spins_of(quantum), _rings.spins_of(quantum.classical()), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_a_gaussian_layer_couples_a_ring_to_itself():
    rbm = machine(2, 2, 1.0, gaussian=True)
    rbm = RBM(rbm.a, rbm.b, rbm.W, True, torch.tensor([1.0, 1.4], dtype=torch.float64))
    spins = _rings.spins_of(rbm)
    assert (np.bincount(spins.unit) > 1).all()
    units, p = enumerated(spins)
    mean = rbm.visible_field(torch.tensor((units + 1) / 2)).numpy()
    line = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    exact = (-rbm.free_energy(grid)).softmax(0)
    np.testing.assert_allclose(p @ mean, exact @ grid, rtol=0.02)
    np.testing.assert_allclose(p @ mean**2 + 1, exact @ grid.square(), rtol=0.02)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(
    ("sampler", "n"),
    [
        (DimodSampler.simulated_annealing(), 8000),
        (DimodSampler.path_integral_annealing(50, gamma=0.5), 3000),
    ],
    ids=["annealing", "path integral"],
)
def test_moments(sampler, n, gamma):
    rbm = machine(4, 3, gamma)
    exact = moments(rbm)
    found = moments(rbm, sampler, n_draws=n, n_queries=1, generator=seeded(2))
    first, second = exact.variances()
    off = torch.cat([found.visible - exact.visible, found.hidden - exact.hidden])
    assert (off.abs() < 5 * (first / n).sqrt() + 0.01).all()
    assert ((found.product - exact.product).abs() < 5 * (second / n).sqrt() + 0.01).all()


def test_a_processor_draws_rings():
    chip = MockDWaveSampler(
        topology_type="zephyr",
        topology_shape=[2, 4],
        parameter_warnings=False,
        substitute_sampler=SimulatedAnnealingSampler(),
        substitute_kwargs={
            "beta_schedule_type": "custom",
            "beta_schedule": [4.0],
            "num_sweeps_per_beta": 200,
        },
    )
    sampler = DimodSampler(EmbeddingComposite(chip), beta=4.0, auto_scale=False)
    rbm = machine(4, 2, 1.0)
    draws = ask(sampler, rbm, 50, generator=seeded(0))
    assert set(draws.visible.unique().tolist()) == {0.0, 1.0}
    assert len(draws.hidden.unique()) > 2 and draws.hidden.min() >= 0 and draws.hidden.max() <= 1
    row = assess(sampler, rbm, n_draws=500, n_queries=2, generator=seeded(0)).iloc[0]
    assert row["error_1"] < 0.1 and row["error_2"] < 0.1
