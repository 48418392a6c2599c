"""The simulated coherent Ising machine: its dialect, its temperature, its corrections."""

import itertools

import numpy as np
import pytest
import scvi
import torch
from helpers import seeded, weak_fields
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.ising import RBM
from scqbm.samplers import CIMSampler
from scqbm.samplers.cim._machine import ising_matrix, max_level

BARE = {"noise": 0.05, "n_sweeps": 0, "adapt": False}  # the optimiser


def draws_of(sampler, rbm, n_draws=2000, seed=0, state=None):
    return sampler.sample(rbm, n_draws, state, seeded(seed))


def table(rbm):
    """All states of the bits (visible first) and the energy of each, from the definition.

    With Gaussian units only hidden bits, the integral over the others done by hand.
    """
    a, b, W = (x.double().numpy() for x in (rbm.a, rbm.b, rbm.W))
    n = len(b) if rbm.gaussian else len(a) + len(b)
    states = np.array(list(itertools.product([0.0, 1.0], repeat=n)))
    energy = []
    for state in states:
        if rbm.gaussian:
            mean = a + W @ (state - 0.5)
            energy.append(-b @ state - mean @ mean / 2)
        else:
            v, h = state[: len(a)], state[len(a) :]
            energy.append(-a @ v - b @ h - (v - 0.5) @ W @ (h - 0.5))
    return states, np.array(energy)


def bits_of(draws, rbm):
    parts = [draws.hidden] if rbm.gaussian else [draws.visible, draws.hidden]
    return torch.cat(parts, -1).double().numpy()


def z_of_moments(draws, rbm):
    """Errors of all spin means and products, in units of the error of independent draws."""
    states, energy = table(rbm)
    p = np.exp(energy.min() - energy)
    p /= p.sum()
    pairs = np.triu_indices(states.shape[1], 1)

    def features(bits):
        s = 2 * bits - 1
        return np.concatenate([s, s[:, pairs[0]] * s[:, pairs[1]]], 1)

    exact = features(states)
    mean = p @ exact
    error = np.sqrt(np.maximum(p @ exact**2 - mean**2, 1e-4) / len(draws.hidden))
    return (features(bits_of(draws, rbm)).mean(0) - mean) / error


@pytest.mark.parametrize("gaussian", [False, True])
def test_matrix_with_auxiliary_spin_has_the_priors_energies(gaussian):
    rbm = weak_fields(3, 4, gaussian, dtype=torch.float64)
    K = ising_matrix(rbm).numpy()
    assert np.array_equal(K, K.T) and not K.diagonal().any()
    states, energy = table(rbm)
    for sign in (1, -1):  # turning all spins, the auxiliary one too, changes nothing
        spins = sign * np.concatenate([2 * states - 1, np.ones((len(states), 1))], 1)
        ising = -np.einsum("si,ij,sj->s", spins, K, spins) / 2
        assert np.allclose(ising - ising[0], energy - energy[0])


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_without_noise_it_finds_the_ground_state(gaussian, seed):
    rbm = weak_fields(5, 5, gaussian, seed, scale=1.5)
    draws = draws_of(CIMSampler(**BARE), rbm, 200)
    states, energy = table(rbm)
    found = (bits_of(draws, rbm) == states[energy.argmin()]).all(1)
    assert found.mean() > 0.1  # of 1,024 states, or 32
    assert draws.info["beta"] > 1  # colder than the prior: it optimises


@pytest.mark.parametrize(
    ("gaussian", "scale"), [(False, 0.5), (False, 1.5), (True, 0.5), (True, 1)]
)
def test_moments_agree_with_enumeration(gaussian, scale):
    rbm = weak_fields(5, 5, gaussian, seed=3, scale=scale)
    z = z_of_moments(draws_of(CIMSampler(), rbm, 3000), rbm)
    assert np.sqrt((z**2).mean()) < 1.6
    assert np.abs(z).max() < 5


def test_corrections_earn_their_place():
    rbm = weak_fields(5, 5, seed=3, scale=2.0)
    error = {}
    for name, kwargs in {
        "bare": BARE,
        "temperature": {"n_sweeps": 0},
        "both": {},
    }.items():
        z = z_of_moments(draws_of(CIMSampler(**kwargs), rbm, 3000), rbm)
        error[name] = np.sqrt((z**2).mean())
    assert error["bare"] > 2 * error["temperature"] > 2 * error["both"] / 0.8


def test_gaussian_units_follow_their_bits():
    rbm = weak_fields(4, 3, gaussian=True)
    draws = draws_of(CIMSampler(), rbm, 4000)
    noise = draws.visible - rbm.visible_field(draws.hidden)
    assert noise.mean(0).abs().max() < 5 / 4000**0.5
    assert (noise.T @ noise / 4000 - torch.eye(4)).abs().max() < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("noise", [0.6, 1.6])
def test_temperature_is_found_from_either_side(noise):
    rbm = weak_fields(5, 5, scale=1.5)
    sampler = CIMSampler(noise=noise)
    at_first = draws_of(CIMSampler(noise=noise, adapt=False), rbm).info["beta"]
    assert at_first > 1.2 if noise < 1 else at_first < 0.8
    draws = draws_of(sampler, rbm)
    draws = draws_of(sampler, rbm, seed=1, state=draws.state)
    assert draws.info["beta"] == pytest.approx(1, abs=0.1)


def test_temperature_follows_a_prior_that_grows():
    sampler, state, betas = CIMSampler(), None, []
    for step in range(12):
        rbm = weak_fields(6, 6, scale=0.3 + 0.15 * step)
        draws = draws_of(sampler, rbm, 500, step, state)
        state = draws.state
        betas.append(draws.info["beta"])
    assert np.abs(np.array(betas) - 1).max() < 0.25


@pytest.mark.parametrize("bits", [2, 4, 8, None])
def test_couplings_are_rounded(bits):
    K = ising_matrix(weak_fields(5, 5, dtype=torch.float64))
    _, used = CIMSampler(n_steps=1, bits=bits).read(K, 1, seeded(0))
    if bits is None:
        assert torch.equal(used, K)
        return
    step = K.abs().max() / max_level(bits)
    levels = used / step
    assert torch.allclose(levels, levels.round(), atol=1e-9)
    assert levels.abs().max().round() == max_level(bits)
    assert (used - K).abs().max() <= step / 2 + 1e-12
    assert (used - K).abs().max() > 0


def test_rounding_is_reported_and_mended():
    rbm = weak_fields(5, 5, scale=1.5)
    coarse = draws_of(CIMSampler(bits=3, n_sweeps=0), rbm, 2000)
    K = ising_matrix(rbm)
    step = K.abs().max() / 3
    expected = ((K / step).round() * step - K).norm() / K.norm()
    assert coarse.info["rounding"] == pytest.approx(expected.item(), rel=1e-4)
    assert draws_of(CIMSampler(bits=None), rbm, 10).info["rounding"] == 0
    mended = draws_of(CIMSampler(bits=3), rbm, 2000)
    worse, better = (np.sqrt((z_of_moments(d, rbm) ** 2).mean()) for d in (coarse, mended))
    assert worse > 2 * better and better < 1.6


def test_without_couplings_the_units_are_independent():
    rbm = weak_fields(5, 5).scaled(0.0)
    assert np.abs(z_of_moments(draws_of(CIMSampler(), rbm), rbm)).max() < 5
    flat = RBM(torch.zeros(3), torch.zeros(4), torch.zeros(3, 4))
    draws = draws_of(CIMSampler(n_sweeps=0), flat)
    assert np.abs(z_of_moments(draws, flat)).max() < 5
    assert draws.info["beta"] == 1 and draws.info["rounding"] == 0


@pytest.mark.parametrize("gaussian", [False, True])
def test_huge_couplings_stay_finite(gaussian):
    draws = draws_of(CIMSampler(n_steps=50), weak_fields(30, 30, gaussian, scale=50.0), 20)
    assert draws.visible.isfinite().all()
    assert all(np.isfinite(list(draws.info.values())))


def test_same_seed_same_draws_and_state_apart():
    rbm, sampler = weak_fields(4, 4), CIMSampler(n_steps=50)
    first, again, other = (draws_of(sampler, rbm, 50, seed) for seed in (0, 0, 1))
    assert torch.equal(first.visible, again.visible) and torch.equal(first.hidden, again.hidden)
    assert not torch.equal(first.visible, other.visible)
    assert all(isinstance(x, torch.Tensor | int) for x in first.state.values())
    assert all(isinstance(x, float) for x in first.info.values())
    before = {key: torch.as_tensor(x).clone() for key, x in first.state.items()}
    first.visible.fill_(7)
    second = draws_of(sampler, rbm, 50, 2, first.state)
    assert all(torch.equal(torch.as_tensor(first.state[key]), x) for key, x in before.items())
    assert second.state["n_seen"] == first.state["n_seen"] + 1
    assert second.visible.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtype(dtype):
    draws = draws_of(CIMSampler(n_steps=10), weak_fields(3, 5, dtype=dtype), 7)
    assert draws.visible.shape == (7, 3) and draws.hidden.shape == (7, 5)
    assert draws.visible.dtype == draws.hidden.dtype == dtype


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"n_steps": 0}, "n_steps"),
        ({"pump": 0.0}, "pump"),
        ({"pump": 11.0}, "pump"),
        ({"noise": -1.0}, "noise"),
        ({"control": -0.1}, "control"),
        ({"bits": 1}, "bits"),
        ({"n_sweeps": -1}, "n_sweeps"),
    ],
)
def test_bad_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        CIMSampler(**kwargs)


@pytest.mark.parametrize(
    "family",
    [
        {"latent_distribution": "bernoulli"},
        {"latent_distribution": "normal", "n_prior_hidden": 5},
    ],
)
def test_a_model_trains_with_it(family):
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=60, n_genes=20, n_proteins=0, n_regions=0)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=8, n_hidden=16, **family)
    before = model.module.prior.coupling.detach().clone()
    model.train(
        5,
        accelerator="cpu",
        batch_size=32,
        train_size=0.8,
        validation_size=0.2,
        check_val_every_n_epoch=1,
        sampler=CIMSampler(n_steps=50),
        plan_kwargs={"lr": 5e-3, "n_epochs_kl_warmup": None, "n_negatives": 64},
        enable_progress_bar=False,
    )
    elbo = model.history["elbo_validation"].to_numpy().ravel().astype(float)
    assert np.isfinite(elbo).all()
    assert elbo[-1] < elbo[0]  # scvi-tools reports its negative
    assert not torch.equal(before, model.module.prior.coupling)
