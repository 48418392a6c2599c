"""Energies, free energies and log Z against sums written out state by state."""

import itertools
import math

import dimod
import numpy as np
import pytest
import torch
from helpers import random_rbm

from scqbm.ising import (
    all_states,
    annealed_log_partition,
    bits_to_spins,
    exact_log_partition,
    log_partition,
    spins_to_bits,
)


def energy_by_hand(rbm, v, h):
    """The docstring of scqbm.ising, term by term."""
    a, b, W = rbm.a.numpy(), rbm.b.numpy(), rbm.W.numpy()
    centre = 0.0 if rbm.gaussian else 0.5
    energy = sum(x * x for x in v) / 2 if rbm.gaussian else 0.0
    energy -= sum(a[i] * v[i] for i in range(len(v)))
    energy -= sum(b[j] * h[j] for j in range(len(h)))
    for i, j in itertools.product(range(len(v)), range(len(h))):
        energy -= (v[i] - centre) * W[i, j] * (h[j] - 0.5)
    return energy


def bits(n):
    return list(itertools.product([0, 1], repeat=n))


@pytest.mark.parametrize("gaussian", [False, True])
def test_energy_is_the_documented_one(gaussian):
    rbm = random_rbm(3, 2, gaussian)
    visible = np.random.default_rng(0).normal(size=(5, 3)) if gaussian else bits(3)
    for v, h in itertools.product(visible, bits(2)):
        ours = rbm.energy(torch.tensor(v, dtype=torch.float64), torch.tensor(h).double())
        assert ours.item() == pytest.approx(energy_by_hand(rbm, v, h), abs=1e-12)


@pytest.mark.parametrize("gaussian", [False, True])
def test_free_energy_sums_hidden_out(gaussian):
    rbm = random_rbm(3, 4, gaussian)
    visible = np.random.default_rng(0).normal(size=(5, 3)) if gaussian else bits(3)
    for v in visible:
        expected = -np.logaddexp.reduce([-energy_by_hand(rbm, v, h) for h in bits(4)])
        assert rbm.free_energy(torch.tensor(v).double()).item() == pytest.approx(expected)


def test_hidden_free_energy_sums_visible_out():
    rbm = random_rbm(4, 3)
    for h in bits(3):
        expected = -np.logaddexp.reduce([-energy_by_hand(rbm, v, h) for v in bits(4)])
        assert rbm.hidden_free_energy(torch.tensor(h).double()).item() == pytest.approx(expected)
        swapped = rbm.transposed().free_energy(torch.tensor(h).double()).item()
        assert swapped == pytest.approx(expected)


def test_hidden_free_energy_integrates_gaussians_out():
    rbm = random_rbm(1, 3, gaussian=True)
    grid = torch.linspace(-15, 15, 20001, dtype=torch.float64).unsqueeze(-1)
    for h in bits(3):
        h = torch.tensor(h).double()
        density = (-rbm.energy(grid, h.expand(len(grid), -1))).exp()
        integral = torch.trapezoid(density, grid.squeeze())
        assert rbm.hidden_free_energy(h).item() == pytest.approx(-integral.log().item(), abs=1e-9)


def test_fields_are_conditional_log_odds_and_means():
    rbm = random_rbm(3, 2)
    v = torch.tensor([1.0, 0.0, 1.0]).double()
    for j in range(2):
        off, on = torch.tensor([0.0, 1.0]).double(), torch.tensor([0.0, 1.0]).double()
        off, on = off.clone(), on.clone()
        off[j], on[j] = 0.0, 1.0
        odds = rbm.energy(v, off) - rbm.energy(v, on)
        assert rbm.hidden_field(v)[j].item() == pytest.approx(odds.item())
    gaussian = random_rbm(3, 2, gaussian=True)
    h = torch.tensor([1.0, 0.0]).double()
    mean = gaussian.visible_field(h).requires_grad_()
    slope = torch.autograd.grad(gaussian.energy(mean, h), mean)[0]
    assert slope.abs().max() < 1e-12  # the mean of a Gaussian is its energy's minimum


def test_ising_dialect_agrees_with_dimod():
    rbm = random_rbm(3, 2)
    h, J, offset = (x.numpy() for x in rbm.to_ising())
    bqm = dimod.BinaryQuadraticModel.from_ising(
        dict(enumerate(h)),
        {(i, 3 + j): J[i, j] for i in range(3) for j in range(2)},
        float(offset),
    )
    constant = None
    for v, hid in itertools.product(bits(3), bits(2)):
        spins = bits_to_spins(torch.tensor(v + hid).double())
        assert torch.equal(spins_to_bits(spins), torch.tensor(v + hid).double())
        theirs = bqm.energy(dict(enumerate(spins.numpy())))
        constant = theirs - energy_by_hand(rbm, v, hid)
        assert constant == pytest.approx(0, abs=1e-12)


def test_dense_ising_of_an_integrated_gaussian_layer():
    rbm = random_rbm(2, 4, gaussian=True)
    h, J, offset = rbm.hidden_ising()
    assert torch.equal(J, J.triu(1))
    for hid in bits(4):
        hid = torch.tensor(hid).double()
        spins = bits_to_spins(hid)
        theirs = h @ spins + spins @ J @ spins + offset
        assert theirs.item() == pytest.approx(rbm.hidden_free_energy(hid).item(), abs=1e-12)


def test_all_states_lists_each_once():
    states = all_states(5)
    assert states.shape == (32, 5)
    assert len({tuple(s) for s in states.int().tolist()}) == 32
    assert torch.equal(states[7:9], all_states(5, 7, 9))


@pytest.mark.parametrize("sizes", [(3, 6), (6, 3), (5, 5)])
def test_exact_log_z_of_bits(sizes):
    rbm = random_rbm(*sizes)
    energies = [-energy_by_hand(rbm, v, h) for v in bits(sizes[0]) for h in bits(sizes[1])]
    assert exact_log_partition(rbm).item() == pytest.approx(np.logaddexp.reduce(energies))


def test_exact_log_z_of_gaussians():
    rbm = random_rbm(1, 4, gaussian=True)
    grid = torch.linspace(-15, 15, 20001, dtype=torch.float64).unsqueeze(-1)
    integral = torch.trapezoid((-rbm.free_energy(grid)).exp(), grid.squeeze())
    assert exact_log_partition(rbm).item() == pytest.approx(integral.log().item(), abs=1e-9)


@pytest.mark.parametrize("gaussian", [False, True])
def test_uncoupled_log_z(gaussian):
    rbm = random_rbm(4, 3, gaussian).scaled(0.0)
    assert rbm.log_z_uncoupled().item() == pytest.approx(exact_log_partition(rbm).item())


@pytest.mark.parametrize("gaussian", [False, True])
def test_annealed_log_z_within_its_error(gaussian):
    rbm = random_rbm(8, 6, gaussian, scale=0.7)
    truth = exact_log_partition(rbm).item()
    estimates = [
        annealed_log_partition(rbm, 300, 200, torch.Generator().manual_seed(seed))
        for seed in range(20)
    ]
    z = np.array([(e.value - truth) / e.error for e in estimates])
    assert np.abs(z.mean()) < 4 / math.sqrt(20)  # unbiased within its own error ...
    assert 0.5 < z.std() < 2.0  # ... and the error is neither boast nor excuse
    assert np.mean([e.error for e in estimates]) < 0.05


def test_log_partition_chooses_by_size():
    small, large = random_rbm(10, 30, scale=0.2), random_rbm(30, 30, scale=0.1)
    assert log_partition(small).error == 0.0
    assert log_partition(large).error > 0.0
    forced = annealed_log_partition(small, generator=torch.Generator().manual_seed(0))
    assert abs(forced.value - log_partition(small).value) < 5 * forced.error
