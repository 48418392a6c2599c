"""After a training, the prior comes closer to the codes, and nothing else moves."""

import numpy as np
import pytest
import scvi
import torch
from helpers import all_states, seeded
from scvi.data import synthetic_iid
from torch.distributions import Normal
from training_helpers import FAMILIES, QUIET, Watch, make, state_of

from scqbm import QBMANVI
from scqbm.ising import exact_log_partition
from scqbm.module import BitPosterior
from scqbm.prior import RBMPrior
from scqbm.samplers import ExactSampler, GibbsSampler, TemperingSampler
from scqbm.train import NegativePhase, _settling
from scqbm.train._settling import Codes, settle


def settled(prior, codes, steps, sampler):
    phase = NegativePhase(sampler, _settling.N_DRAWS)
    phase.generator = seeded(0)
    settle(prior, codes, phase, steps, silent=True)


@pytest.mark.parametrize("n_hidden", [0, 3], ids=["halves", "hidden"])
@pytest.mark.parametrize("sampler", [ExactSampler(), GibbsSampler()])
def test_the_prior_comes_closer_to_the_codes(n_hidden, sampler, monkeypatch):
    """Two groups of cells in unequal shares: the divergence from them, over all states."""
    monkeypatch.setattr(_settling, "LR", 0.03)  # a small machine is far from its codes
    torch.manual_seed(0)
    n = 8
    probs = torch.full((1000, n), 0.05)
    probs[:300] = 0.95
    prior = RBMPrior(n, n_hidden, init_scale=0.5)
    states = all_states(n)
    log_q = (states @ probs.log().T + (1 - states) @ (1 - probs).log().T).logsumexp(1)
    log_q = log_q - np.log(1000)

    def divergence():
        log_p = -prior.energy(states) - exact_log_partition(prior.rbm())
        return float((log_q.exp() * (log_q - log_p)).sum())

    far = divergence()
    settled(prior, Codes(BitPosterior(probs), {}), 400, sampler)
    assert divergence() < 0.1 < 1 < far


def test_codes_are_drawn_with_what_belongs_to_them():
    loc = torch.arange(50.0).unsqueeze(1)
    codes = Codes(Normal(loc, loc + 1), {"labels": 2 * loc})
    some = codes.some(200, seeded(0))
    assert len(some.qz.loc) == 200 and set(some.qz.loc.flatten().tolist()) <= set(range(50))
    assert torch.equal(some.qz.scale, some.qz.loc + 1)
    assert torch.equal(some.known["labels"], 2 * some.qz.loc)


@pytest.fixture
def soon(monkeypatch):
    """A step for each step of the training."""
    monkeypatch.setattr(_settling, "TRAINED_STEPS", 1)
    monkeypatch.setattr(_settling, "N_DRAWS", 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_prior_moves(adata, family, soon):
    at_the_end = Watch(
        "on_train_epoch_end",
        lambda plan: {name: value.clone() for name, value in plan.module.state_dict().items()},
    )
    model = make(adata, **family)
    model.train(2, callbacks=[at_the_end], **QUIET)
    before, after = at_the_end.seen[-1], state_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"prior.coupling", "prior.visible_bias"} <= moved
    assert all(name.startswith("prior.") for name in moved)
    if family.get("prior") is None:
        exact = exact_log_partition(model.module.prior.rbm())
        assert model.module.prior.log_z.item() == pytest.approx(exact.item(), abs=1e-3)
    assert not model.module.training
    assert np.isfinite(float(model.get_elbo()))


@pytest.mark.parametrize("sampler", [ExactSampler(), TemperingSampler()])
def test_draws_of_other_samplers_stay_the_only_ones(adata, sampler, soon):
    at_the_end = Watch("on_train_epoch_end", lambda plan: plan.module.prior.coupling.clone())
    model = make(adata)
    model.train(2, sampler=sampler, callbacks=[at_the_end], **QUIET)
    assert torch.equal(model.module.prior.coupling, at_the_end.seen[-1])


@pytest.mark.parametrize("plan", [{"settle": False}, {}], ids=["unwanted", "short"])
def test_a_training_ends_without(adata, plan, monkeypatch):
    if plan:
        monkeypatch.setattr(_settling, "TRAINED_STEPS", 1)
    at_the_end = Watch("on_train_epoch_end", lambda plan: plan.module.prior.coupling.clone())
    model = make(adata)
    model.train(2, plan_kwargs=plan, callbacks=[at_the_end], **QUIET)
    assert torch.equal(model.module.prior.coupling, at_the_end.seen[-1])


def test_a_wrong_argument_is_named(adata):
    with pytest.raises(ValueError, match="^`settle` must be True or False, not 'no'.$"):
        make(adata).train(1, plan_kwargs={"settle": "no"}, **QUIET)


def test_the_same_seed_gives_the_same(adata, soon):
    one, other = make(adata), make(adata)
    for model in (one, other):
        scvi.settings.seed = 1
        model.train(2, **QUIET)
    assert torch.equal(one.module.prior.coupling, other.module.prior.coupling)


@pytest.mark.parametrize("load_sparse_tensor", [False, True])
def test_sparse_counts(load_sparse_tensor, soon):
    adata = synthetic_iid(batch_size=100, n_genes=40, sparse_format="csr_matrix")
    model = make(adata)
    model.train(2, load_sparse_tensor=load_sparse_tensor, **QUIET)
    assert np.isfinite(float(model.get_elbo()))


def test_labels(soon):
    adata = synthetic_iid(batch_size=100, n_genes=40)
    QBMANVI.setup_anndata(adata, "labels", "unknown", batch_key="batch")
    model = QBMANVI(adata, n_latent=8, n_hidden=16)
    at_the_end = Watch("on_train_epoch_end", lambda plan: plan.module.prior.label_field.clone())
    model.train(2, callbacks=[at_the_end], **QUIET)
    assert not torch.equal(model.module.prior.label_field, at_the_end.seen[-1])
    assert np.isfinite(float(model.get_elbo()))
    assert len(model.predict()) == adata.n_obs
