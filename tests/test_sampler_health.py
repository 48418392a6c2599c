"""Draws that are not what they claim: what the training monitor and `effective_beta` see."""

import warnings

import pytest
import scvi
import torch
from helpers import Constant, Hot, glass, random_rbm, seeded
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.ising import RBM, all_states
from scqbm.samplers import ExactSampler, GibbsSampler, effective_beta


def train_on(rbm, sampler, prior_lr=0.0, **kwargs):
    """An epoch of 20 queries with the prior held at ``rbm``; the warnings and the model."""
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=100, n_genes=20)
    QBMVI.setup_anndata(adata, batch_key="batch")
    n_latent = rbm.n_visible + rbm.n_hidden
    model = QBMVI(adata, n_latent=n_latent, n_prior_hidden=0, n_hidden=8)
    prior = model.module.prior
    with torch.no_grad():
        prior.visible_bias.copy_(rbm.a)
        prior.hidden_bias.copy_(rbm.b)
        prior.coupling.copy_(rbm.W)
    plan_kwargs = {"prior_lr": prior_lr, "weight_decay": 0.0, **kwargs}
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 8}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(1, sampler=sampler, train_size=0.8, plan_kwargs=plan_kwargs, **quiet)
    return [str(w.message) for w in caught if "sampler=" in str(w.message)], model


@pytest.mark.parametrize("renew_every", [0, 100])
@pytest.mark.parametrize(("J", "warned"), [(0.075, False), (0.3, True)])
def test_the_monitor_warns_in_the_glass_only(J, warned, renew_every):
    caught, model = train_on(glass(128, J), GibbsSampler(renew_every=renew_every))
    assert bool(caught) == warned
    assert (model.history["prior_ess"].iloc[0, 0] < 0.05 * 256) == warned


def test_constant_draws_are_noticed():
    caught, model = train_on(glass(8, 0.1), Constant())
    assert len(caught) == 1 and "stopped mixing" in caught[0]
    assert model.history["prior_memory"].iloc[0, 0] == 1


def test_health_of_good_draws():
    """The gap is that of enumeration; exact draws are all worth themselves, at temperature 1."""
    rbm = glass(6, 0.5)
    caught, model = train_on(rbm, ExactSampler(), n_negatives=20_000)
    assert not caught
    health = {name: model.history[name].iloc[0, 0] for name in ("prior_ess", "prior_beta")}
    assert health["prior_ess"] == 20_000
    assert health["prior_beta"] == pytest.approx(1, abs=0.03)
    v, h = all_states(6), all_states(6)
    table = torch.stack([rbm.energy(x.expand(len(h), -1), h) for x in v])
    mean = (torch.softmax(-table.flatten(), 0) * table.flatten()).sum().item()
    codes = torch.as_tensor(model.get_latent_representation(representation="mean"))
    data = rbm.energy(codes[:, :6], codes[:, 6:]).mean().item()
    assert model.history["prior_gap"].iloc[0, 0] == pytest.approx(data - mean, abs=0.4)


def test_effective_beta_is_the_temperature_of_the_draws():
    rbm = glass(10, 0.4)
    for sampler, beta in ((ExactSampler(), 1.0), (Hot(), 0.5)):
        draws = sampler.sample(rbm, 5000, None, seeded(0))
        assert effective_beta(rbm, draws.visible, draws.hidden) == pytest.approx(beta, abs=0.03)
    gaussian = RBM(torch.zeros(4), torch.zeros(6), torch.randn(4, 6, generator=seeded(0)), True)
    draws = ExactSampler().sample(gaussian, 5000, None, seeded(0))
    assert effective_beta(gaussian, draws.visible, draws.hidden) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_effective_beta_of_a_quantum_prior(gaussian, beta):
    rbm = random_rbm(4, 3, gaussian, dtype=torch.float64)
    gamma = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    asked = RBM(rbm.a, rbm.b, rbm.W, gaussian, gamma)
    drawn_from = RBM(beta * rbm.a, beta * rbm.b, beta * rbm.W, gaussian, beta * gamma)
    draws = GibbsSampler(n_sweeps=20).sample(drawn_from, 20_000, None, seeded(0))
    assert effective_beta(asked, draws.visible, draws.hidden) == pytest.approx(beta, abs=0.03)
    weights = torch.ones(20_000, dtype=torch.float64)
    weighted = effective_beta(asked, draws.visible, draws.hidden, weights)
    assert weighted == pytest.approx(effective_beta(asked, draws.visible, draws.hidden))
