"""The seams: another prior, and other modules of scvi-tools with a Boltzmann prior.

Each class below is all that it takes. What they compute is compared with enumeration.
"""

import inspect
import itertools

import numpy as np
import pytest
import scvi
import torch
from scvi import REGISTRY_KEYS
from scvi.data import synthetic_iid
from scvi.module import PEAKVAE, SCANVAE
from scvi.module.base import LossOutput
from scvi.train import SemiSupervisedTrainingPlan, TrainingPlan
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)

from scqbm import QBMVI
from scqbm.ising import RBM, LogPartition
from scqbm.module import BitEncoder, BoltzmannMixin
from scqbm.prior import Prior, RBMPrior
from scqbm.samplers import ExactSampler, GibbsSampler
from scqbm.train import BoltzmannPlanMixin

QUIET = {"accelerator": "cpu", "batch_size": 32, "enable_progress_bar": False}


# -- another prior -------------------------------------------------------------------------------


class LowRankPrior(Prior):
    """Couplings of a low rank between the two halves of a code of bits."""

    def __init__(self, n_latent, rank=2):
        super().__init__(n_latent)
        self.half = n_latent // 2
        self.left = nn.Parameter(0.3 * torch.randn(self.half, rank))
        self.right = nn.Parameter(0.3 * torch.randn(n_latent - self.half, rank))
        self.bias = nn.Parameter(torch.zeros(n_latent))

    def rbm(self, frozen=True):
        bias, left, right = self.bias, self.left, self.right
        if frozen:
            bias, left, right = bias.detach(), left.detach(), right.detach()
        return RBM(bias[: self.half], bias[self.half :], left @ right.T)

    def code(self, visible, hidden):
        return torch.cat([visible, hidden], -1)

    def layers(self, code):
        return code[..., : self.half], code[..., self.half :]

    def energy(self, z, rbm=None):
        return (self.rbm() if rbm is None else rbm).energy(*self.layers(z))


# -- other modules -------------------------------------------------------------------------------


class BoltzmannPeakVAE(BoltzmannMixin, PEAKVAE):
    """Accessibility with a Gaussian-Bernoulli RBM over scvi-tools' own continuous code."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.prior = RBMPrior(self.n_latent, n_hidden=5, gaussian=True)

    def loss(self, tensors, inference_outputs, generative_outputs, kl_weight=1.0):
        out = super().loss(tensors, inference_outputs, generative_outputs, kl_weight=0.0)
        terms = self.boltzmann_terms(inference_outputs["qz"], inference_outputs["z"])
        loss = terms.add_to(out.loss + kl_weight * terms.kl.sum())
        return LossOutput(loss, out.reconstruction_loss, kl_local=terms.kl)


class PeakPlan(BoltzmannPlanMixin, TrainingPlan):
    pass


class PeakQBM(scvi.model.PEAKVI):
    _module_cls = BoltzmannPeakVAE
    _training_plan_cls = PeakPlan


class BoltzmannSCANVAE(BoltzmannMixin, SCANVAE):
    """scANVI's classifier on a code of bits under an RBM."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.z_encoder = BitEncoder(self.z_encoder.encoder, self.z_encoder.mean_encoder)
        self.prior = RBMPrior(self.n_latent, n_hidden=0)
        self.batch_mixing, self.entropy_bonus = 20.0, 0.1

    def loss(
        self,
        tensors,
        inference_outputs,
        generative_ouputs,
        kl_weight=1.0,
        labelled_tensors=None,
        classification_ratio=None,
    ):
        qz, z = inference_outputs["qz"], inference_outputs["z"]
        terms = self.boltzmann_terms(qz, z, tensors[REGISTRY_KEYS.BATCH_KEY], self.n_batch)
        reconstruction = -generative_ouputs["px"].log_prob(tensors["X"]).sum(-1)
        logits = self.classifier(z)
        labels = Categorical(logits=logits if self.classifier.logits else logits.log())
        kl = terms.kl + kl_divergence(labels, Categorical(probs=self.y_prior))
        loss = terms.add_to((reconstruction + kl_weight * kl).mean())
        rest = {"kl_local": kl, "extra_metrics": terms.metrics()}
        if labelled_tensors is not None:
            cross_entropy, truth, logits = self.classification_loss(labelled_tensors)
            loss = loss + classification_ratio * cross_entropy
            rest |= {"true_labels": truth, "logits": logits, "classification_loss": cross_entropy}
        return LossOutput(loss, reconstruction, **rest)


class LabelPlan(BoltzmannPlanMixin, SemiSupervisedTrainingPlan):
    pass


class LabelQBM(scvi.model.SCANVI):
    _module_cls = BoltzmannSCANVAE
    _training_plan_cls = LabelPlan


# -- tests ---------------------------------------------------------------------------------------


def bits(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def joint(rbm):
    """Energies of all joint states, spelt out unit by unit from the documented formula."""
    energies = torch.zeros(2**rbm.n_visible, 2**rbm.n_hidden, dtype=torch.float64)
    for i, v in enumerate(bits(rbm.n_visible)):
        for j, h in enumerate(bits(rbm.n_hidden)):
            energies[i, j] = -(rbm.a @ v + rbm.b @ h + (v - 0.5) @ rbm.W @ (h - 0.5))
    return energies


def enumerated_log_z(rbm):
    """``log Z``; a Gaussian layer is integrated out by the square that completes its energy."""
    if not rbm.gaussian:
        return torch.logsumexp(-joint(rbm).flatten(), 0)
    terms = [
        rbm.b @ h
        + ((rbm.a + rbm.W @ (h - 0.5)) ** 2 / 2).sum()
        + rbm.n_visible * np.log(2 * np.pi) / 2
        for h in bits(rbm.n_hidden)
    ]
    return torch.logsumexp(torch.stack(terms), 0)


def kl_by_enumeration(prior, probs):
    """``KL(q || p)`` of one cell over all codes of two halves, with gradients to the prior."""
    rbm = prior.rbm(frozen=False)
    log_p = (-joint(rbm) - enumerated_log_z(rbm)).flatten()
    codes = torch.cat(
        [
            bits(rbm.n_visible).repeat_interleave(2**rbm.n_hidden, 0),
            bits(rbm.n_hidden).repeat(2**rbm.n_visible, 1),
        ],
        1,
    )
    log_q = (codes * probs.log() + (1 - codes) * (-probs).log1p()).sum(1)
    return (log_q.exp() * (log_q - log_p)).sum()


def check_kl_and_gradient(prior, qz, z, kl):
    """KL of each cell and its gradient to the prior against enumeration of all codes."""
    truth = torch.stack([kl_by_enumeration(prior, p) for p in qz.probs.detach()])
    torch.testing.assert_close(kl, truth.detach(), rtol=1e-9, atol=1e-9)
    rbm = prior.rbm()
    weight = torch.exp(-joint(rbm) - enumerated_log_z(rbm)).sum(1)
    prior.deliver(bits(rbm.n_visible), weight)  # the negatives of a perfect sampler
    parameters = list(prior.parameters())
    expected = torch.autograd.grad(truth.mean(), parameters)
    found = torch.autograd.grad(prior.contrast(qz, z), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sampler", [ExactSampler(), GibbsSampler()])
def test_another_prior_trains_without_a_change_anywhere_else(sampler):
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=60, n_genes=30)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=7, n_hidden=16)
    model.module.prior = prior = LowRankPrior(7)
    before = prior.left.detach().clone()
    model.train(2, sampler=sampler, **QUIET)
    assert not torch.equal(prior.left, before)
    assert {"prior_beta", "prior_ess", "prior_memory", "prior_gap"} <= set(model.history)
    assert prior.log_z.item() == pytest.approx(enumerated_log_z(prior.rbm().to(float)).item())
    assert model.get_prior_energy().shape == (120,)
    assert model.sample_cells(5).obsm["code"].shape == (5, 7)

    model.module.double()
    prior.set_log_partition(LogPartition(enumerated_log_z(prior.rbm()).item(), 0.0))
    _, qz, _ = posterior(model)
    z = qz.probs.detach()  # linear in each bit: the energy of probabilities is the expected one
    check_kl_and_gradient(prior, qz, z, prior.kl(qz, z).detach())


def posterior(model):
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=4)))
    tensors = {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}
    inputs = model.module._get_inference_input(tensors)
    outputs = model.module.inference(**inputs)
    return tensors, outputs["qz"], outputs["z"]


def test_scanvae_with_bits_meets_enumeration():
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=60, n_genes=30)
    LabelQBM.setup_anndata(adata, "labels", "label_0", batch_key="batch")
    model = LabelQBM(adata, n_latent=6, n_hidden=16)
    before = model.module.prior.coupling.detach().clone()
    model.train(2, check_val_every_n_epoch=1, **QUIET)
    prior = model.module.prior
    assert not torch.equal(prior.coupling, before)
    assert len(model.predict()) == 120
    assert {"prior_beta", "batch_mixing_train", "entropy_bonus_train"} <= set(model.history)
    assert prior.log_z.item() == pytest.approx(enumerated_log_z(prior.rbm().to(float)).item())

    model.module.double()
    prior.set_log_partition(LogPartition(enumerated_log_z(prior.rbm()).item(), 0.0))
    tensors, qz, z = posterior(model)
    terms = model.module.boltzmann_terms(qz, z)
    check_kl_and_gradient(prior, qz, z, terms.kl.detach())


def test_peakvae_with_a_gaussian_rbm_meets_enumeration():
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=60, n_genes=30, n_regions=0, return_mudata=False)
    adata.X = (adata.X > 1).astype(np.float32)
    PeakQBM.setup_anndata(adata, batch_key="batch")
    model = PeakQBM(adata, n_latent=3, n_hidden=16)
    prior = model.module.prior
    before = prior.coupling.detach().clone()
    model.train(2, check_val_every_n_epoch=1, plan_kwargs={"prior_lr": 0.05}, **QUIET)
    assert not torch.equal(prior.coupling, before)
    assert prior.log_z.item() == pytest.approx(enumerated_log_z(prior.rbm().to(float)).item())

    model.module.double()
    prior.set_log_partition(LogPartition(enumerated_log_z(prior.rbm()).item(), 0.0))
    tensors, qz, _ = posterior(model)
    z = qz.sample((3,)).detach()
    log_p = mixture(prior).log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), log_p.detach(), rtol=1e-9, atol=1e-9)
    standard = Normal(torch.zeros_like(qz.loc), torch.ones_like(qz.scale))
    kl = kl_divergence(qz, standard).sum(-1)
    kl = kl + (standard.log_prob(z).sum(-1) - log_p).mean(0)
    terms = model.module.boltzmann_terms(qz, z)
    torch.testing.assert_close(terms.kl.detach(), kl.detach(), rtol=1e-9, atol=1e-9)

    prior.deliver(*perfect_negatives(prior))
    parameters = list(prior.parameters())
    expected = torch.autograd.grad(-log_p.mean(), parameters)
    found = torch.autograd.grad(prior.contrast(qz, z), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def mixture(prior, frozen=False):
    """A Gaussian-Bernoulli RBM by hand: one unit Gaussian for each state of its hidden bits."""
    rbm, states = prior.rbm(frozen), bits(len(prior.hidden_bias))
    means = rbm.a + (states - 0.5) @ rbm.W.T
    weights = states @ rbm.b + (means**2 / 2).sum(1)
    parts = Independent(Normal(means, torch.ones_like(means)), 1)
    return MixtureSameFamily(Categorical(logits=weights), parts)


def perfect_negatives(prior, n=14):
    """Weighted draws whose averages are those of the prior: Gauss-Hermite nodes of each part."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    p = mixture(prior, frozen=True)
    means = p.component_distribution.mean
    grid = torch.tensor(list(itertools.product(x, repeat=means.shape[1])))
    weight = torch.tensor(list(itertools.product(w / w.sum(), repeat=means.shape[1]))).prod(1)
    v = (means.unsqueeze(1) + grid).flatten(0, 1)
    return v, (p.mixture_distribution.probs.unsqueeze(1) * weight).flatten()


def test_each_takes_under_sixty_lines():
    for classes in (
        [LowRankPrior],
        [BoltzmannPeakVAE, PeakPlan, PeakQBM],
        [BoltzmannSCANVAE, LabelPlan, LabelQBM],
    ):
        assert sum(len(inspect.getsource(cls).splitlines()) for cls in classes) < 60
