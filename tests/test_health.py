"""Training says when a sampler's draws cannot be trusted, at any size of data."""

import warnings

import pytest
import scvi
import torch
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.samplers import Draws, ExactSampler, GibbsSampler, Sampler

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "train_size": 0.8}


class Counted(Sampler):
    """Counts the queries, and knows how many there were when a warning came."""

    def __init__(self):
        self.n_asked = 0

    def sample(self, rbm, n_draws, state=None, generator=None):
        self.n_asked += 1
        return self.draws(rbm, n_draws, state, generator)


class Constant(Counted):
    """One draw, for ever."""

    def draws(self, rbm, n_draws, state, generator):
        return Draws(torch.ones(n_draws, rbm.n_visible), torch.zeros(n_draws, rbm.n_hidden))


class Stuck(Counted):
    """Exact draws at first, of which a tenth is renewed at each query, but not the same chains."""

    def draws(self, rbm, n_draws, state, generator):
        if state:
            draws = Draws(state["visible"].clone(), state["hidden"].clone())
            draws.hidden = torch.bernoulli(torch.full_like(draws.hidden, 0.5))
            draws.visible[:3] = torch.bernoulli(torch.full_like(draws.visible[:3], 0.5))
        else:
            draws = ExactSampler().sample(rbm, n_draws, None, generator)
        draws.state = {"visible": draws.visible.clone(), "hidden": draws.hidden.clone()}
        return draws


class Lonely(Counted):
    """One draw has all the weight."""

    def draws(self, rbm, n_draws, state, generator):
        draws = ExactSampler().sample(rbm, n_draws, None, generator)
        draws.weights = torch.full((n_draws,), 1e-6)
        draws.weights[0] = 1
        return draws


def train(sampler, n_cells, batch_size, epochs, **kwargs):
    """The health warnings, how many queries there were at the first of them, and the model."""
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=n_cells // 2, n_genes=20)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=8, n_hidden=8)
    said, asked = [], []

    def note(message, *args, **kwargs):
        if "Try sampler=" in str(message):
            said.append(str(message))
            asked.append(getattr(sampler, "n_asked", 0))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        model.train(epochs, sampler=sampler, batch_size=batch_size, **QUIET, **kwargs)
    return said, asked, model


SIZES = [
    # cells, batch_size, epochs, sample_every: so many queries an epoch
    pytest.param(40, 32, 60, 1, id="one query an epoch"),
    pytest.param(200, 32, 60, 5, id="one query an epoch of five steps"),
    pytest.param(200, 16, 8, 1, id="ten queries an epoch"),
    pytest.param(600, 8, 2, 1, id="sixty queries an epoch"),
    pytest.param(4000, 4, 1, 1, id="eight hundred queries an epoch"),
]


@pytest.mark.parametrize(("n_cells", "batch_size", "epochs", "every"), SIZES)
def test_constant_draws_are_named_within_100_queries(n_cells, batch_size, epochs, every):
    said, asked, _ = train(Constant(), n_cells, batch_size, epochs, sample_every=every)
    assert len(said) == 1 and "stopped mixing" in said[0]
    assert asked[0] <= 100


@pytest.mark.parametrize(("n_cells", "batch_size", "epochs", "every"), SIZES[:4])
def test_stuck_chains_are_named_over_as_many_epochs_as_it_takes(
    n_cells, batch_size, epochs, every
):
    said, asked, _ = train(Stuck(), n_cells, batch_size, epochs, sample_every=every)
    assert len(said) == 1 and "stopped mixing" in said[0]
    assert asked[0] <= 100


def test_few_effective_draws_are_named_on_small_data():
    said, asked, _ = train(Lonely(), 40, 32, 40)
    assert len(said) == 1 and "separated modes that its sampler cannot cross" in said[0]
    assert asked[0] <= 30


@pytest.mark.parametrize("sampler", [ExactSampler(), GibbsSampler()])
@pytest.mark.parametrize(("n_cells", "batch_size", "epochs", "every"), SIZES[1:4])
def test_good_draws_stay_silent(sampler, n_cells, batch_size, epochs, every):
    said, _, model = train(sampler, n_cells, batch_size, epochs, sample_every=every)
    assert not said
    assert {"prior_memory", "prior_ess", "prior_beta", "prior_gap"} <= set(model.history)
