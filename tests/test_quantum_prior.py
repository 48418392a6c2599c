"""The quantum prior in a model."""

import numpy as np
import pytest
import scvi
import torch
from helpers import assert_one_sentence, seeded
from scvi.data import synthetic_iid
from training_helpers import QUIET

from scqbm import QBMANVI, QBMVI
from scqbm.ising import all_states
from scqbm.module import BitPosterior
from scqbm.prior import RBMPrior, TransverseFieldPrior
from scqbm.samplers import DimodSampler, ExactSampler, GibbsSampler, SamplerError
from scqbm.samplers.cim import CIMSampler

CODES = {
    "bits": {"n_latent": 6, "n_prior_hidden": 4},
    "normal": {"latent_distribution": "normal", "n_latent": 4, "n_prior_hidden": 3},
}
each_code = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


def cells():
    scvi.settings.seed = 0
    return synthetic_iid(batch_size=100, n_genes=30)


def make(adata=None, **kwargs):
    adata = cells() if adata is None else adata
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    return QBMVI(adata, n_hidden=16, **{"prior": "quantum", **CODES["bits"], **kwargs})


def make_prior(n_latent=5, n_hidden=3, seed=0, **kwargs):
    torch.manual_seed(seed)
    prior = TransverseFieldPrior(n_latent, n_hidden, **kwargs).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter)
    prior.set_log_partition(prior.log_partition())
    return prior


def exact_negatives(prior):
    v = all_states(prior.n_latent).double()
    prior.deliver(v, (-prior.energy(v)).softmax(0))
    return v


def test_kl_and_gradients():
    """Against autodiff of the sum over all codes."""
    prior = make_prior()
    v = exact_negatives(prior)
    probs = torch.rand(4, 5, dtype=torch.float64, generator=seeded(1))
    log_q = torch.where(v[:, None] > 0, probs[None].log(), (1 - probs[None]).log()).sum(-1)
    energy = prior.energy(v, prior.rbm(frozen=False))
    truth = (log_q.exp() * (log_q + (energy + (-energy).logsumexp(0))[:, None])).sum(0).mean()
    theirs = torch.autograd.grad(truth, list(prior.parameters()))
    value, ours = 0.0, [torch.zeros_like(p) for p in prior.parameters()]
    qz = BitPosterior(probs)
    for code, q in zip(v, log_q.exp(), strict=True):
        z = code.expand(4, -1)
        value = value + (q * prior.kl(qz, z)).mean()
        for i in range(4):  # one cell at a time: each has its own weight
            contrast = prior.contrast(BitPosterior(probs[i : i + 1]), z[:1])
            grads = torch.autograd.grad(contrast, list(prior.parameters()))
            ours = [o + q[i] * g / 4 for o, g in zip(ours, grads, strict=True)]
    assert value.item() == pytest.approx(truth.item(), rel=1e-10)
    for x, y in zip(ours, theirs, strict=True):
        assert torch.allclose(x, y, rtol=1e-8, atol=1e-12)


def test_a_field_is_learnt_from_data_of_a_known_machine():
    truth = make_prior(4, 2, seed=3)
    truth.gamma.data = torch.tensor([1.5, 0.7], dtype=torch.float64)
    v = all_states(4).double()
    p = (-truth.energy(v)).softmax(0).detach()
    prior = make_prior(4, 2, seed=3)
    prior.gamma.data.fill_(0.2)
    for parameter in prior.parameters():
        parameter.requires_grad_(parameter is prior.gamma)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(800):
        exact_negatives(prior)
        optimizer.zero_grad()
        contrast = sum(
            weight * prior.contrast(BitPosterior(code[None]), code[None])
            for code, weight in zip(v, p, strict=True)
        )
        contrast.backward()
        optimizer.step()
    assert torch.allclose(prior.gamma.abs(), truth.gamma, atol=0.02)


@each_code
def test_without_a_field_the_loss_is_that_of_the_rbm(code):
    adata, losses, state = cells(), [], None
    for prior in ("rbm", "quantum"):
        model = make(adata, prior=prior, transverse_field=0.0, **code)
        tensors = next(iter(model._make_data_loader(adata, indices=np.arange(20))))
        if state is not None:  # the same weights; the fields stay 0
            model.module.load_state_dict(state, strict=False)
        state = model.module.state_dict()
        draws = model.module.prior
        draws.deliver(visible_draws(model))
        torch.manual_seed(1)
        out = model.module(tensors)[2]
        out.loss.backward()
        losses.append((out.loss.item(), {n: p.grad for n, p in model.module.named_parameters()}))
    (one, theirs), (two, ours) = losses
    assert one == two
    assert set(ours) - set(theirs) == {"prior.gamma"}
    assert (ours["prior.gamma"] == 0).all()  # by symmetry: only its size matters
    for name, grad in theirs.items():
        if grad is not None:
            assert torch.allclose(ours[name], grad, rtol=1e-4, atol=1e-6), name


def visible_draws(model):
    """The same visible draws for both priors."""
    n = model.module.prior.rbm().n_visible
    return torch.bernoulli(torch.full((64, n), 0.5), generator=seeded(0))


@each_code
def test_training_saving_loading_and_queries(code, tmp_path):
    model = make(**code)
    start = model.module.prior.gamma.detach().clone()
    assert (start == 1).all()
    model.train(4, plan_kwargs={"prior_lr": 0.05}, **QUIET)
    learnt = model.module.prior.gamma.detach()
    assert (learnt != start).all()
    assert np.isfinite(model.history["prior_beta"].to_numpy(dtype=float)).all()
    model.save(tmp_path / "m", overwrite=True)
    loaded = QBMVI.load(tmp_path / "m", model.adata)
    assert torch.equal(loaded.module.prior.gamma, learnt)
    assert "prior: quantum" in loaded._model_summary_string
    np.testing.assert_allclose(loaded.get_prior_energy(), model.get_prior_energy(), rtol=1e-5)
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=5))
    assert np.isfinite(model.get_prior_energy(relative=True)).all()
    assert model.sample_cells(20, like=list(range(30))).n_obs == 20
    assert model.sample_cells(20, steer={1: 1}).obsm["code"][:, 1].min() == 1
    assert model.get_landscape(silent=True).n_obs >= 1
    query = cells()
    query.obs["batch"] = "new"
    mapped = QBMVI.load_query_data(query, model)
    mapped.train(1, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    assert torch.equal(mapped.module.prior.gamma, learnt)


def test_draws_of_a_trained_prior():
    model = make()
    model.train(1, **QUIET)
    prior = model.module.prior
    torch.manual_seed(0)
    for parameter in prior.parameters():
        parameter.data = 1.5 * torch.randn(parameter.shape)
    v = all_states(6)
    p = (-prior.energy(v)).double().softmax(0).detach().numpy()
    for sampler in (None, GibbsSampler(n_sweeps=200, n_anneal=200)):
        drawn = model.sample_prior(4000, sampler=sampler)
        found = np.bincount((drawn @ 2 ** np.arange(6)).astype(int), minlength=64) / 4000
        assert np.abs(found - p).max() < 5 * np.sqrt(p.max() / 4000)


def test_a_fixed_field():
    model = make(transverse_field=0.7, learn_transverse_field=False)
    model.train(1, sampler=ExactSampler(), plan_kwargs={"prior_lr": 0.05}, **QUIET)
    assert torch.allclose(model.module.prior.gamma, torch.full((4,), 0.7))


def test_an_ocean_sampler_trains_it():
    model = make()
    before = [p.detach().clone() for p in model.module.prior.parameters()]
    model.train(2, sampler=DimodSampler.simulated_annealing(20), **QUIET)
    for old, new in zip(before, model.module.prior.parameters(), strict=True):
        assert not torch.equal(old, new)
    assert np.isfinite(model.history["elbo_train"].to_numpy(float)).all()


def test_wrong_input():
    adata = cells()
    QBMVI.setup_anndata(adata, batch_key="batch")
    for wrong, text in (
        ({"transverse_field": -1.0}, "`transverse_field` must be 0 or more, not -1.0"),
        ({"transverse_field": float("nan")}, "`transverse_field` must be 0 or more, not nan"),
        ({"n_prior_hidden": 0}, "`n_prior_hidden` must be at least 1"),
        ({"prior": "ising"}, "`prior` must be one of"),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            QBMVI(adata, **{"prior": "quantum", **wrong})
        assert_one_sentence(caught.value)
    assert QBMVI(adata, prior="quantum").module.prior.rbm().n_hidden == 64
    with pytest.raises(SamplerError, match="CIMSampler cannot draw from hidden units") as failed:
        make().train(1, sampler=CIMSampler(), **QUIET)
    assert "The model keeps its training" in str(failed.value)
    adata.obs["label"] = ["a", "b"] * 100
    with pytest.warns(UserWarning, match="all cells count as labelled"):
        QBMANVI.setup_anndata(adata, "label", "none")
    with pytest.raises(ValueError, match="`prior` must be 'rbm'") as caught:
        QBMANVI(adata, prior="quantum", n_latent=6, n_prior_hidden=3)
    assert_one_sentence(caught.value)
    assert isinstance(make(prior="rbm").module.prior, RBMPrior)
