"""Hidden spins in a transverse field against the density matrix."""

import itertools

import numpy as np
import pytest
import torch
from helpers import random_rbm, seeded
from scipy.linalg import expm
from scipy.special import i1

from scqbm.ising import (
    MAX_EXACT_UNITS,
    RBM,
    all_states,
    annealed_log_partition,
    draw_hidden,
    exact_log_partition,
)
from scqbm.samplers import (
    ExactSampler,
    GibbsSampler,
    SamplerError,
    TemperingSampler,
    ask,
    assess,
    moments,
)
from scqbm.samplers.cim import CIMSampler

SIZES = pytest.mark.parametrize(("n_visible", "n_hidden"), [(3, 3), (2, 4), (5, 2), (1, 1)])
X, Z, ONE = np.array([[0.0, 1], [1, 0]]), np.diag([1.0, -1]), np.eye(2)


def machine(n_visible, n_hidden, gamma=None, seed=0, gaussian=False):
    rbm = random_rbm(n_visible, n_hidden, gaussian, seed)
    if gamma is None:
        gamma = 2 * torch.rand(n_hidden, generator=seeded(seed + 1), dtype=torch.float64)
    else:
        gamma = torch.full((n_hidden,), gamma, dtype=torch.float64)
    return RBM(rbm.a, rbm.b, rbm.W, gaussian, gamma)


def on(matrix, site, n):
    """A matrix of one spin among ``n``."""
    out = np.eye(1)
    for i in range(n):
        out = np.kron(out, matrix if i == site else ONE)
    return out


def hamiltonian(rbm):
    """By the documented energy, bit = (1 + Z) / 2, as a torch matrix with gradients."""
    n_v, n_h = rbm.W.shape
    n = n_v + n_h
    # numpy's kron runs from the first spin to the last; a bit is 1 where Z is +1
    bit = [torch.tensor((on(Z, i, n) + np.eye(2**n)) / 2) for i in range(n)]
    half = torch.eye(2**n, dtype=torch.float64) / 2
    H = torch.zeros(2**n, 2**n, dtype=torch.float64)
    for i in range(n_v):
        H = H - rbm.a[i] * bit[i]
        for j in range(n_h):
            H = H - rbm.W[i, j] * (bit[i] - half) @ (bit[n_v + j] - half)
    for j in range(n_h):
        H = H - rbm.b[j] * bit[n_v + j] - rbm.gamma[j] * torch.tensor(on(X, n_v + j, n))
    return H


def log_weights(rbm, rho):
    """Log of the diagonal summed over the hidden spins, for all visible states in our order."""
    n_v, n_h = rbm.W.shape
    diagonal = rho.diagonal().reshape(2**n_v, 2**n_h).sum(1)
    states = list(itertools.product([1, 0], repeat=n_v))  # of numpy's kron
    row = {state: i for i, state in enumerate(states)}
    ours = [row[tuple(int(x) for x in v)] for v in all_states(n_v)]
    return diagonal[ours].log()


@SIZES
@pytest.mark.parametrize("gamma", [None, 0.0, 3.0])
def test_free_energy_and_log_z(n_visible, n_hidden, gamma):
    rbm = machine(n_visible, n_hidden, gamma)
    rho = torch.tensor(expm(-hamiltonian(rbm).numpy()))
    free = rbm.free_energy(all_states(n_visible).double())
    assert torch.allclose(-free, log_weights(rbm, rho), rtol=1e-10, atol=1e-10)
    assert exact_log_partition(rbm).item() == pytest.approx(rho.trace().log().item(), rel=1e-10)


@SIZES
@pytest.mark.parametrize("gamma", [None, 0.0])
def test_gradients(n_visible, n_hidden, gamma):
    rbm = machine(n_visible, n_hidden, gamma)
    parameters = [p.clone().requires_grad_() for p in (rbm.a, rbm.b, rbm.W, rbm.gamma)]
    live = RBM(*parameters[:3], False, parameters[3])
    some = torch.rand(2**n_visible, generator=seeded(5), dtype=torch.float64)
    ours = torch.autograd.grad(
        (some * live.free_energy(all_states(n_visible).double())).sum(), parameters
    )
    rho = torch.linalg.matrix_exp(-hamiltonian(live))
    theirs = torch.autograd.grad(-(some * log_weights(live, rho)).sum(), parameters)
    for x, y in zip(ours, theirs, strict=True):
        assert torch.allclose(x, y, rtol=1e-8, atol=1e-10)


@SIZES
def test_mean_of_the_hidden_spins(n_visible, n_hidden):
    rbm = machine(n_visible, n_hidden)
    rho = expm(-hamiltonian(rbm).numpy())
    n = n_visible + n_hidden
    exact = moments(rbm)
    for j in range(n_hidden):
        mean = np.trace(rho @ on(Z, n_visible + j, n)) / np.trace(rho)
        assert exact.hidden[j].item() == pytest.approx(mean, abs=1e-10)
        for i in range(n_visible):
            both = np.trace(rho @ on(Z, i, n) @ on(Z, n_visible + j, n)) / np.trace(rho)
            assert exact.product[i, j].item() == pytest.approx(both, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_field_it_is_the_classical_machine_bit_by_bit(dtype):
    classical = random_rbm(6, 5, scale=3.0, dtype=dtype)
    quantum = RBM(classical.a, classical.b, classical.W, False, torch.zeros(5, dtype=dtype))
    v = all_states(6).to(dtype)
    assert torch.equal(classical.free_energy(v), quantum.free_energy(v))
    assert torch.equal(classical.log_z_uncoupled(), quantum.log_z_uncoupled())
    h = quantum.draw_hidden(v, seeded(0))
    assert set(h.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("gamma", [0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("x", [0.0, 0.5, -3.0, 9.0])
def test_draws_of_a_hidden_spin(gamma, x):
    """Their moment generating function is a ratio of two traces."""
    n = 200_000
    h = draw_hidden(
        torch.full((n, 1), x, dtype=torch.float64),
        torch.tensor([gamma], dtype=torch.float64),
        seeded(1),
    )
    assert h.min() >= 0 and h.max() <= 1
    m = 2 * h - 1

    def trace(f):
        return np.cosh(np.sqrt(f**2 + gamma**2))

    for t in (-1.5, -0.3, 0.7, 2.0):
        values = (t * m).exp()
        expected = trace(x / 2 + t) / trace(x / 2)
        error = values.std().item() / n**0.5
        assert values.mean().item() == pytest.approx(expected, abs=5 * error + 1e-12)


def test_block_gibbs_leaves_the_distribution_as_it_is():
    """Without random numbers: the kernel is an integral over the hidden units, done by nodes."""
    rbm = machine(3, 2, seed=4)
    # Gauss's nodes in the angle; both ends carry the mass of classical spins
    angles, steps = np.polynomial.legendre.leggauss(200)
    angles, steps = (angles + 1) * np.pi / 2, steps * np.pi / 2
    m = np.concatenate([[-1, 1], np.cos(angles)])
    v = all_states(3).double()
    target = (-rbm.free_energy(v)).softmax(0).numpy()
    per_unit = []
    for j, gamma in enumerate(rbm.gamma.tolist()):
        inside = gamma * i1(gamma * np.sin(angles)) * steps
        mass = np.concatenate([[1, 1], inside])
        f = rbm.hidden_field(v)[:, j].numpy()[:, None] / 2
        weight = mass * np.exp(f * m)
        np.testing.assert_allclose(
            weight.sum(1), 2 * np.cosh(np.hypot(f[:, 0], gamma)), rtol=1e-12
        )
        per_unit.append(weight / weight.sum(1, keepdims=True))
    grid = np.array(list(itertools.product(m, m)))
    back = rbm.visible_field(torch.tensor((grid + 1) / 2)).sigmoid().numpy()
    to = np.stack([np.where(s.numpy() > 0, back, 1 - back).prod(1) for s in v], 1)
    kernel = np.einsum("vi,vj->vij", *per_unit).reshape(8, -1) @ to
    np.testing.assert_allclose(kernel.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(target @ kernel, target, rtol=1e-10)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(
    ("sampler", "n"),
    [
        (ExactSampler(), 20_000),
        (GibbsSampler(n_sweeps=10, n_anneal=50), 8_000),
        (TemperingSampler(n_sweeps=10, n_replicas=5, n_start=50), 3_000),
    ],
    ids=lambda x: "" if isinstance(x, int) else type(x).__name__,
)
def test_moments_of_samplers(sampler, n, gamma):
    rbm = machine(4, 3, gamma)
    exact = moments(rbm)
    found = moments(rbm, sampler, n_draws=n, n_queries=1, generator=seeded(2))
    first, second = exact.variances()
    off = torch.cat([found.visible - exact.visible, found.hidden - exact.hidden])
    assert (off.abs() < 5 * (first / n).sqrt() + 1e-3).all()
    assert ((found.product - exact.product).abs() < 5 * (second / n).sqrt() + 1e-3).all()


@pytest.mark.parametrize("gaussian", [False, True])
def test_log_z_is_annealed(gaussian):
    rbm = machine(2 if gaussian else 6, 4, 1.0, gaussian=gaussian)
    estimate = annealed_log_partition(rbm, 4000, 200, seeded(0))
    if gaussian:
        line = torch.linspace(-12, 12, 801, dtype=torch.float64)
        grid = torch.cartesian_prod(line, line)
        exact = (-rbm.free_energy(grid)).logsumexp(0) + 2 * np.log(24 / 800)
    else:
        exact = exact_log_partition(rbm)
    assert estimate.value == pytest.approx(exact.item(), abs=5 * estimate.error + 1e-3)


def test_samplers_of_classical_spins_say_so():
    rbm = machine(3, 3, 1.0)
    with pytest.raises(SamplerError, match="cannot draw from hidden units in a transverse"):
        ask(CIMSampler(), rbm, 4)
    for call in (rbm.to_ising, rbm.transposed, lambda: rbm.hidden_free_energy(torch.ones(1, 3))):
        with pytest.raises(ValueError, match="needs hidden bits without a transverse field"):
            call()
    assert MAX_EXACT_UNITS == 20
    with pytest.raises(SamplerError, match="has 21"):
        ask(ExactSampler(), machine(21, 2, 1.0), 4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("x", [-3.0, 0.0, 0.001, 2.0])
def test_variance_of_a_hidden_spin(gamma, x):
    """Against draws; ``h`` is a bit without a field, and a number between 0 and 1 in one."""
    rbm = RBM(torch.zeros(1), torch.tensor([x]), torch.zeros(1, 1), gamma=torch.tensor([gamma]))
    v = torch.zeros(200_000, 1)
    drawn = rbm.draw_hidden(v, seeded(0)).double()
    assert rbm.hidden_variance(v)[0].item() == pytest.approx(drawn.var().item(), rel=0.02)


def test_the_sign_of_a_field_does_not_matter():
    x = torch.linspace(-3, 3, 50_000)[:, None]
    plus, minus = (draw_hidden(x, torch.tensor([g]), seeded(0)) for g in (2.0, -2.0))
    torch.testing.assert_close(plus, minus)


def test_assess_finds_exact_draws_at_the_floor_in_a_field():
    rbm = machine(5, 4, gamma=3.0)
    row = assess(ExactSampler(), rbm, n_draws=1000, n_queries=40).iloc[0]
    for which in ("1", "2"):
        assert row[f"error_{which}"] == pytest.approx(row[f"floor_{which}"], rel=0.15)
