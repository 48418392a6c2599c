"""The loss's gradients with exact negatives against autodiff of the enumerated KL.

A wrong sign in the negative phase trains happily; only these tests see it.
"""

import itertools

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS
from torch.distributions import Normal

from scqbm.ising import LogPartition, all_states, exact_log_partition
from scqbm.module import QBVAE, BitPosterior
from scqbm.prior import RBMPrior
from scqbm.samplers import ExactSampler, GibbsSampler

N_CELLS = 5


def make_prior(n_latent, n_hidden, gaussian=False, seed=0, scale=0.8):
    torch.manual_seed(seed)
    prior = RBMPrior(n_latent, n_hidden, gaussian).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    prior.set_log_partition(LogPartition(exact_log_partition(prior.rbm()).item(), 0.0))
    return prior


def joint_energies(prior):
    """Enumerated table of E over every state of both layers, by the documented formula."""
    a, b, W = prior.visible_bias, prior.hidden_bias, prior.coupling
    v, h = all_states(len(a)).double(), all_states(len(b)).double()
    return v, h, -((v @ a)[:, None] + (h @ b)[None] + (v - 0.5) @ W @ (h - 0.5).T)


def enumerated_log_p(prior):
    """All codes and log p of each."""
    v, h, energy = joint_energies(prior)
    log_joint = -energy - torch.logsumexp(-energy.flatten(), 0)
    if not prior.in_halves:
        return v, torch.logsumexp(log_joint, 1)
    codes = torch.tensor(
        [tuple(x) + tuple(y) for x, y in itertools.product(v.tolist(), h.tolist())]
    )
    return codes.double(), log_joint.flatten()


def exact_negatives(prior):
    """Every visible state with its marginal probability."""
    v, _, energy = joint_energies(prior)
    return v, torch.softmax(torch.logsumexp(-energy, 1), 0).detach()


def enumerated_kl(prior, probs):
    codes, log_p = enumerated_log_p(prior)
    log_q = torch.where(codes[:, None] > 0, probs[None].log(), (1 - probs[None]).log()).sum(-1)
    return (log_q.exp() * (log_q - log_p[:, None])).sum(0).mean()


def relative_error(ours, truth):
    return ((ours - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize(("n_latent", "n_hidden"), [(6, 0), (7, 0), (2, 0), (4, 3), (3, 6)])
def test_bits_kl_and_prior_gradient(n_latent, n_hidden):
    prior = make_prior(n_latent, n_hidden)
    logits = torch.randn(N_CELLS, n_latent, dtype=torch.float64)
    qz = BitPosterior(logits.sigmoid())
    truth = torch.autograd.grad(enumerated_kl(prior, qz.probs), list(prior.parameters()))
    prior.deliver(*exact_negatives(prior))

    if n_hidden == 0:
        value, loss = prior.kl(qz, qz.sample()).mean(), prior.contrast(qz, qz.sample())
        ours = torch.autograd.grad(loss, list(prior.parameters()))
    else:  # the layout needs a draw of z: average over every code, weighted by q
        codes, _ = enumerated_log_p(prior)
        value, ours = 0.0, [torch.zeros_like(p) for p in prior.parameters()]
        for code in codes:
            weight = qz.log_prob(code.expand(N_CELLS, -1)).sum(-1).exp()
            z = code.expand(N_CELLS, -1)
            value = value + (weight * prior.kl(qz, z)).mean()
            for cell in range(N_CELLS):
                one = BitPosterior(qz.probs[cell : cell + 1])
                loss = prior.contrast(one, z[cell : cell + 1])
                grads = torch.autograd.grad(loss, list(prior.parameters()))
                for total, grad in zip(ours, grads, strict=True):
                    total += weight[cell] * grad / N_CELLS
    assert value.item() == pytest.approx(enumerated_kl(prior, qz.probs).item(), rel=1e-5)
    for mine, exact in zip(ours, truth, strict=True):
        assert relative_error(mine, exact) < 1e-4


def test_contrast_has_value_zero_and_descends():
    prior = make_prior(6, 0)
    qz = BitPosterior(torch.rand(N_CELLS, 6, dtype=torch.float64))
    prior.deliver(*exact_negatives(prior))
    loss = prior.contrast(qz, qz.sample())
    assert loss.item() == 0.0
    before = enumerated_kl(prior, qz.probs).item()
    grads = torch.autograd.grad(loss, list(prior.parameters()))
    with torch.no_grad():
        for parameter, grad in zip(prior.parameters(), grads, strict=True):
            parameter -= 0.01 * grad
    assert enumerated_kl(prior, qz.probs).item() < before


def tiny_module(latent_distribution, n_latent, n_prior_hidden, **kwargs):
    torch.manual_seed(0)
    module = QBVAE(
        6,
        n_batch=2,
        n_hidden=8,
        n_latent=n_latent,
        dropout_rate=0.0,
        gene_likelihood="nb",
        latent_distribution=latent_distribution,
        n_prior_hidden=n_prior_hidden,
        **kwargs,
    ).double()
    module.prior = make_prior(n_latent, n_prior_hidden, latent_distribution == "normal")
    tensors = {
        REGISTRY_KEYS.X_KEY: torch.poisson(torch.full((N_CELLS, 6), 4.0)).double() + 1,
        REGISTRY_KEYS.BATCH_KEY: torch.arange(N_CELLS).unsqueeze(-1) % 2,
        REGISTRY_KEYS.LABELS_KEY: torch.zeros(N_CELLS, 1, dtype=torch.long),
    }
    return module, tensors


def kl_gradients(module, tensors, kl_weight=1.0):
    """Gradients of the whole loss less those of the reconstruction, at one and the same draw."""
    gradients = []
    for weight in (kl_weight, 0.0):
        torch.manual_seed(1)
        module.zero_grad()
        inference = module.inference(**module._get_inference_input(tensors))
        generative = module.generative(**module._get_generative_input(tensors, inference))
        module.loss(tensors, inference, generative, kl_weight=weight).loss.backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in module.parameters()])
    encoder = {
        name: full - rest
        for (name, _), full, rest in zip(module.named_parameters(), *gradients, strict=True)
        if name.startswith("z_encoder") and full is not None
    }
    prior = {
        name: rest
        for (name, _), rest in zip(module.named_parameters(), gradients[1], strict=True)
        if name.startswith("prior")
    }
    return encoder, prior, inference


def test_whole_loss_of_bits():
    module, tensors = tiny_module("bernoulli", 6, 0)
    module.prior.deliver(*exact_negatives(module.prior))
    encoder, prior, inference = kl_gradients(module, tensors)
    probs = module.inference(**module._get_inference_input(tensors))["qz"].probs
    names = [*encoder, *prior]
    parameters = dict(module.named_parameters())
    truth = torch.autograd.grad(
        enumerated_kl(module.prior, probs), [parameters[name] for name in names]
    )
    for name, exact in zip(names, truth, strict=True):
        ours = {**encoder, **prior}[name]
        if exact.norm() > 1e-10:  # biases before batch norm have none
            assert relative_error(ours, exact) < 1e-4, name


def test_encoder_gradient_sees_the_couplings():
    module, tensors = tiny_module("bernoulli", 6, 0)
    before, _, _ = kl_gradients(module, tensors)
    with torch.no_grad():
        module.prior.coupling.mul_(-1)
    after, _, _ = kl_gradients(module, tensors)
    name = "z_encoder.mean_encoder.weight"
    assert relative_error(after[name], before[name]) > 0.1


def test_prior_learns_at_full_strength_whatever_the_kl_weight():
    module, tensors = tiny_module("bernoulli", 6, 0)
    module.prior.deliver(*exact_negatives(module.prior))
    _, at_zero, _ = kl_gradients(module, tensors, kl_weight=0.3)  # prior part: loss at weight 0
    gradients = {}
    torch.manual_seed(1)
    module.zero_grad()
    inference = module.inference(**module._get_inference_input(tensors))
    generative = module.generative(**module._get_generative_input(tensors, inference))
    module.loss(tensors, inference, generative, kl_weight=1.0).loss.backward()
    for name, parameter in module.prior.named_parameters():
        gradients["prior." + name] = parameter.grad
    for name, grad in at_zero.items():
        assert torch.allclose(grad, gradients[name])
        assert grad.norm() > 0


# -- continuous codes: Gauss-Hermite nodes stand in for the draws -------------------------------

NODES, WEIGHTS = (torch.tensor(x) for x in np.polynomial.hermite_e.hermegauss(24))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def gaussian_nodes(n):
    """Product nodes of a standard Gaussian in n dimensions."""
    points = torch.stack([p.flatten() for p in torch.meshgrid([NODES] * n, indexing="ij")], -1)
    weights = torch.stack([w.flatten() for w in torch.meshgrid([WEIGHTS] * n, indexing="ij")], -1)
    return points, weights.prod(-1)


def gaussian_log_p(prior, z):
    """log p(z) as an explicit mixture of 2^m Gaussians, normalised by hand."""
    a, b, W = prior.visible_bias, prior.hidden_bias, prior.coupling
    h = all_states(len(b)).double()
    means = a + (h - 0.5) @ W.T
    log_mass = h @ b + means.square().sum(-1) / 2  # integral of exp(-E) over z, up to (2 pi)^n/2
    log_mix = log_mass - torch.logsumexp(log_mass, 0)
    log_parts = Normal(means, torch.ones_like(means)).log_prob(z.unsqueeze(-2)).sum(-1)
    return torch.logsumexp(log_mix + log_parts, -1)


def gaussian_negatives(prior, n):
    rbm = prior.rbm()
    h = all_states(rbm.n_hidden).double()
    mass = torch.softmax(-rbm.hidden_free_energy(h), 0)
    points, weights = gaussian_nodes(n)
    v = (rbm.visible_field(h).unsqueeze(1) + points).reshape(-1, n)
    return v, (mass.unsqueeze(1) * weights).flatten()


@pytest.mark.parametrize("n_hidden", [1, 4])
def test_continuous_kl_and_gradients(n_hidden):
    n = 2
    prior = make_prior(n, n_hidden, gaussian=True)
    loc = torch.randn(1, n, dtype=torch.float64, requires_grad=True)
    scale = (0.3 + torch.rand(1, n, dtype=torch.float64)).requires_grad_()
    points, weights = gaussian_nodes(n)
    z = loc + scale * points
    log_q = Normal(loc, scale).log_prob(z).sum(-1)
    truth = (weights * (log_q - gaussian_log_p(prior, z))).sum()
    leaves = [loc, scale, *prior.parameters()]
    exact = torch.autograd.grad(truth, leaves, retain_graph=True)

    qz = Normal(loc, scale)
    prior.deliver(*gaussian_negatives(prior, n))
    value = sum(w * prior.kl(qz, x.unsqueeze(0)).sum() for w, x in zip(weights, z, strict=True))
    assert value.item() == pytest.approx(truth.item(), rel=1e-5)
    ours = list(torch.autograd.grad(value, [loc, scale], retain_graph=True))
    contrast = sum(w * prior.contrast(qz, x.unsqueeze(0)) for w, x in zip(weights, z, strict=True))
    ours += torch.autograd.grad(contrast, list(prior.parameters()))
    for mine, true in zip(ours, exact, strict=True):
        assert relative_error(mine, true) < 1e-4


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_normal_without_couplings_is_scvi(kl_weight):
    from scvi.module import VAE

    module, tensors = tiny_module("normal", 3, 4)
    for parameter in module.prior.parameters():
        torch.nn.init.zeros_(parameter)
    module.prior.set_log_partition(LogPartition(exact_log_partition(module.prior.rbm()).item(), 0))
    scvi = VAE(6, n_batch=2, n_hidden=8, n_latent=3, dropout_rate=0.0, gene_likelihood="nb")
    weights = {k: v for k, v in module.state_dict().items() if not k.startswith("prior")}
    scvi.double().load_state_dict(weights)
    losses, gradients = [], []
    for net in (module.float(), scvi.float()):
        torch.manual_seed(0)
        _, _, out = net(
            {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()},
            loss_kwargs={"kl_weight": kl_weight},
        )
        net.zero_grad()
        out.loss.backward()
        losses.append(out)
        gradients.append({k: p.grad for k, p in net.named_parameters() if p.grad is not None})
    ours, theirs = losses
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    kl = [x.kl_local["kl_divergence_z"] for x in losses]
    assert torch.allclose(*kl, atol=1e-5)
    for name, grad in gradients[1].items():
        assert torch.allclose(gradients[0][name], grad, rtol=1e-4, atol=1e-5), name


# -- sampled gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [ExactSampler(), GibbsSampler(200)])
@pytest.mark.parametrize(
    ("n_latent", "n_hidden", "gaussian"), [(8, 0, False), (5, 4, False), (3, 4, True)]
)
def test_sampled_negative_phase_is_unbiased(n_latent, n_hidden, gaussian, sampler):
    prior = make_prior(n_latent, n_hidden, gaussian, scale=0.5)
    if gaussian:  # d log Z by autodiff of the enumerated mixture
        rbm = prior.rbm(frozen=False)
        log_z = torch.logsumexp(-rbm.hidden_free_energy(all_states(n_hidden).double()), 0)
    else:
        _, _, energy = joint_energies(prior)
        log_z = torch.logsumexp(-energy.flatten(), 0)
    exact = torch.autograd.grad(log_z, list(prior.parameters()))
    state, n_draws, n_repeats = None, 200, 200
    generator = torch.Generator().manual_seed(3)
    sampled = []
    for _ in range(n_repeats):
        draws = sampler.sample(prior.rbm(), n_draws, state, generator)
        state = draws.state
        prior.deliver(draws.visible)
        loss = -prior.negative_energy(prior.rbm(frozen=False)).mean()
        sampled.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(prior.parameters()))])
        )
    sampled = torch.stack(sampled)
    error = sampled.std(0) / n_repeats**0.5
    z = (sampled.mean(0) - torch.cat([g.flatten() for g in exact])) / error
    assert z.abs().max() < 5  # of some 30 entries
    assert z.square().mean() < 2
