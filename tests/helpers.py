"""What several test files need: small machines, seeds, stand-ins, and how an error must read."""

import traceback

import pytest
import torch

from scqbm.ising import RBM, all_states
from scqbm.samplers import Draws, ExactSampler, Sampler

MACHINES = {
    "bits": ([0.5, -1.0, 0.2], [0.3, -0.4], False),
    "wide": ([0.5], [0.3, -0.4, 1.0], False),
    "gaussian": ([0.5, -1.0], [0.3, -0.4, 0.1], True),
}
all_machines = pytest.mark.parametrize("machine", MACHINES)


def seeded(seed, device="cpu"):
    """A source of random numbers."""
    return torch.Generator(device=device).manual_seed(seed)


def random_rbm(n_visible, n_hidden, gaussian=False, seed=0, scale=1.0, bias=1.0, dtype=None):
    """A machine with normal couplings of standard deviation ``scale``; ``bias`` times for biases.

    In double precision unless ``dtype`` says otherwise.
    """
    g = seeded(seed)
    a, b, W = (
        scale * torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in ((n_visible,), (n_hidden,), (n_visible, n_hidden))
    )
    return RBM(bias * a, bias * b, W, gaussian).to(dtype or torch.float64)


def tiny_rbm(machine, dtype=torch.float32, device="cpu"):
    """One of the machines of ``MACHINES``."""
    a, b, gaussian = MACHINES[machine]
    W = 1.2 * torch.randn(len(a), len(b), generator=seeded(3))
    return RBM(torch.tensor(a), torch.tensor(b), W, gaussian).to(dtype=dtype, device=device)


def weak_fields(n_visible, n_hidden, gaussian=False, seed=0, scale=1.0, dtype=torch.float32):
    """A machine whose biases are half as large as its couplings."""
    return random_rbm(n_visible, n_hidden, gaussian, seed, scale, bias=0.5, dtype=dtype)


def glass(n, J, seed=0):
    """Fields N(0, .05) and couplings N(0, J) of spins."""
    g = seeded(seed)
    fields, couplings = 0.05 * torch.randn(2 * n, generator=g), J * torch.randn(n, n, generator=g)
    return RBM(-2 * fields[:n], -2 * fields[n:], -4 * couplings)


def exact_moments(rbm):
    """<v>, <h>, <v h'> by listing every state; Gaussian means come from their conditional."""
    h = all_states(rbm.n_hidden).to(rbm.W)
    if rbm.gaussian:
        p = torch.softmax(-rbm.hidden_free_energy(h), 0)
        v_given_h = rbm.visible_field(h)
        return p @ v_given_h, p @ h, (v_given_h * p[:, None]).T @ h
    v = all_states(rbm.n_visible).to(rbm.W)
    table = torch.stack([rbm.energy(x.expand(len(h), -1), h) for x in v])
    p = torch.softmax(-table.flatten(), 0).reshape(table.shape)
    return p.sum(1) @ v, p.sum(0) @ h, v.T @ p @ h


def draws_of(sampler, rbm, n_draws=20, seed=0, state=None):
    """One query with a seed of its own."""
    return sampler.sample(rbm, n_draws, state, seeded(seed))


def assert_same(one, two):
    """The same draws, bit by bit."""
    assert torch.equal(one.visible, two.visible)
    assert torch.equal(one.hidden, two.hidden)


def assert_one_sentence(error):
    """Users get one sentence, which ends in a full stop."""
    text = str(error)
    assert text.endswith(".") and "\n" not in text and ". " not in text, text


def assert_hidden(error, secret):
    """Neither an error nor what it came from shows a secret."""
    assert secret not in "".join(traceback.format_exception(error, chain=True))
    left, seen = [error], []
    while left:
        error = left.pop()
        assert secret not in f"{error} {error!r} {error.args} {getattr(error, '__notes__', '')}"
        seen.append(error)
        left += [e for e in (error.__cause__, error.__context__) if e is not None]
    assert len(seen) < 10


class Constant(Sampler):
    """The same states at every query."""

    def sample(self, rbm, n_draws, state=None, generator=None):
        zeros = torch.zeros(n_draws, rbm.n_visible), torch.zeros(n_draws, rbm.n_hidden)
        return Draws(*(x.to(rbm.W) for x in zeros))


class Hot(Sampler):
    """Exact draws at half the inverse temperature."""

    def sample(self, rbm, n_draws, state=None, generator=None):
        hot = RBM(rbm.a / 2, rbm.b / 2, rbm.W / 2)
        return ExactSampler().sample(hot, n_draws, state, generator)
