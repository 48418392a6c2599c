"""What several test files need: small machines, models and cells, stand-ins, how errors read."""

import traceback
import warnings

import numpy as np
import pytest
import scvi
import torch

from scqbm import QBMVI
from scqbm.data import simulate
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


# -- tables, models and simulated cells ----------------------------------------------------------

P_SMALL = 1e-6  # chance that a correct simulator fails a test on a fresh seed


def value(table, method, metric, group=None):
    """The one score of a tidy table."""
    rows = table[(table["method"] == method) & (table["metric"] == metric)]
    if group is not None:
        rows = rows[rows["group"] == group]
    (only,) = rows["value"]
    return only


def two_models():
    """Simulated cells, and a QBMVI and a SCVI that were trained on them for a moment."""
    scvi.settings.seed = 0
    adata = simulate(200, 30, n_types=3, seed=0)
    trained = {}
    for name, cls, kwargs in (
        ("QBMVI", QBMVI, {"n_latent": 6, "n_prior_hidden": 0}),
        ("SCVI", scvi.model.SCVI, {"n_latent": 3}),
    ):
        cls.setup_anndata(adata, batch_key="batch")
        trained[name] = cls(adata, gene_likelihood="nb", **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained[name].train(2, train_size=0.8, enable_progress_bar=False)
    return adata, trained


def rates(adata):
    """Counts over the true library size, so that depth plays no role."""
    return adata.X.toarray().astype(float) / adata.obs["library_size"].to_numpy()[:, None]


def assert_same_cells(a, b):
    assert (a.X != b.X).nnz == 0
    assert a.obs.astype(str).equals(b.obs.astype(str))
    assert a.var.equals(b.var)
    for key in a.varm:
        np.testing.assert_array_equal(a.varm[key], b.varm[key])
