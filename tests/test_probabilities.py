"""What rests on p(z): likelihood, importance weights, posterior, surrogates."""

import itertools

import numpy as np
import pytest
import scvi
import torch
from scvi import REGISTRY_KEYS
from scvi.data import synthetic_iid
from scvi.distributions._utils import DistributionConcatenator, subset_distribution
from torch.distributions import Independent, MixtureSameFamily, Normal

from scqbm import QBMVI
from scqbm.ising import LogPartition, all_states, exact_log_partition
from scqbm.module._bits import RELAXATIONS, BitPosterior, draw_bits


def small_model(latent_distribution, n_latent, n_prior_hidden, n_cells=6):
    """An untrained model with strong couplings, on a few cells of 12 genes."""
    scvi.settings.seed = 0  # few draws fit some encoders, and importance weights then vary much
    adata = synthetic_iid(batch_size=n_cells // 2, n_genes=12, n_proteins=0, n_regions=0)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(
        adata,
        n_latent=n_latent,
        latent_distribution=latent_distribution,
        n_prior_hidden=n_prior_hidden,
        gene_likelihood="nb",
    )
    torch.manual_seed(0)
    prior = model.module.prior
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    prior.set_log_partition(LogPartition(exact_log_partition(prior.rbm()).item(), 0.0))
    if latent_distribution == "normal":  # a posterior wide enough to propose from
        torch.nn.init.constant_(model.module.z_encoder.var_encoder.bias, 1.5)
    model.module.eval()
    model.is_trained_ = True
    return model


def log_prior_by_hand(prior, codes):
    """log p(z) from the documented energy, enumerating every unit outside z."""
    a, b, W = (
        p.detach().double() for p in (prior.visible_bias, prior.hidden_bias, prior.coupling)
    )
    h = all_states(len(b)).double()
    if prior.gaussian:
        means = a + (h - 0.5) @ W.T
        mix = torch.log_softmax(h @ b + means.square().sum(-1) / 2, 0)
        parts = Normal(means, torch.ones_like(means)).log_prob(codes.unsqueeze(-2)).sum(-1)
        return torch.logsumexp(mix + parts, -1)
    v = all_states(len(a)).double()
    energy = -((v @ a)[:, None] + (h @ b)[None] + (v - 0.5) @ W @ (h - 0.5).T)
    log_joint = -energy - torch.logsumexp(-energy.flatten(), 0)
    table = {
        tuple(x) + tuple(y): log_joint[i, j]
        for (i, x), (j, y) in itertools.product(
            enumerate(v.int().tolist()), enumerate(h.int().tolist())
        )
    }
    if prior.in_halves:
        return torch.stack([table[tuple(c)] for c in codes.int().tolist()])
    marginal = dict(zip(map(tuple, v.int().tolist()), torch.logsumexp(log_joint, 1), strict=True))
    return torch.stack([marginal[tuple(c)] for c in codes.int().tolist()])


def all_codes(prior):
    """Every code with the log of its volume element (a fine grid for continuous ones)."""
    if not prior.gaussian:
        codes = all_states(prior.n_latent).double()
        return codes, torch.zeros(len(codes), dtype=torch.float64)
    grid = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    return grid.unsqueeze(-1), torch.full((len(grid),), 0.01, dtype=torch.float64).log()


def log_likelihood_table(model, codes):
    """log p(x | z) of every cell (rows) at every code (columns)."""
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=100)))
    x, batch = tensors[REGISTRY_KEYS.X_KEY], tensors[REGISTRY_KEYS.BATCH_KEY]
    rows = []
    with torch.no_grad():
        for i in range(len(x)):
            px = model.module.generative(
                z=codes.float(),
                library=x[i].sum().log().expand(len(codes), 1),
                batch_index=batch[i].expand(len(codes), 1),
            )["px"]
            rows.append(px.log_prob(x[i]).sum(-1).double())
    return torch.stack(rows)


LAYOUTS = [("bernoulli", 6, 0), ("bernoulli", 5, 3), ("normal", 1, 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_prob_and_log_z(layout):
    model = small_model(*layout)
    prior = model.module.prior
    codes, log_volume = all_codes(prior)
    ours = prior.log_prob(codes.float()).double()
    assert torch.allclose(ours, log_prior_by_hand(prior, codes), atol=1e-4)
    assert torch.logsumexp(ours + log_volume, 0).item() == pytest.approx(0, abs=1e-4)
    estimate = model.get_log_partition()
    assert estimate.error == 0
    assert estimate.value == pytest.approx(prior.log_z.item(), abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_marginal_likelihood(layout):
    model = small_model(*layout)
    codes, log_volume = all_codes(model.module.prior)
    log_p = log_prior_by_hand(model.module.prior, codes) + log_volume
    exact = torch.logsumexp(log_likelihood_table(model, codes) + log_p, 1)
    torch.manual_seed(0)
    ours = model.get_marginal_ll(n_mc_samples=20000, n_mc_samples_per_pass=5000, return_mean=False)
    assert torch.allclose(ours.double(), exact, atol=0.1)
    assert ours.double().mean().item() == pytest.approx(exact.mean().item(), abs=0.03)
    elbo = float(np.mean([float(model.get_elbo()) for _ in range(10)]))
    assert elbo < exact.mean().item()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_elbo_against_enumeration(layout):
    model = small_model(*layout)
    prior = model.module.prior
    codes, log_volume = all_codes(prior)
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=100)))
    with torch.no_grad():
        qz = model.module.inference(**model.module._get_inference_input(tensors))["qz"]
    log_q = qz.log_prob(codes.float().unsqueeze(1)).sum(-1).double() + log_volume[:, None]
    log_p = log_prior_by_hand(prior, codes) + log_volume
    terms = log_likelihood_table(model, codes).T + log_p[:, None] - log_q
    exact = (log_q.exp() * terms).sum(0).mean().item()
    draws = np.array([float(model.get_elbo()) for _ in range(100)])
    assert abs(draws.mean() - exact) < 5 * draws.std() / np.sqrt(len(draws)) + 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_importance_weights(layout):
    model = small_model(*layout)
    prior = model.module.prior
    indices = np.arange(model.adata.n_obs)
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=100)))
    torch.manual_seed(1)
    with torch.no_grad():
        inference, generative = model.module(tensors, compute_loss=False)
    qz, px, zs = inference["qz"], generative["px"], inference["z"]
    torch.manual_seed(0)
    ours = model.get_importance_weights(
        model.adata, indices, qz, px, zs, n_mc_samples=6000, n_mc_samples_per_pass=2000
    )
    codes, log_volume = all_codes(prior)
    log_p = log_prior_by_hand(prior, codes) + log_volume
    log_px = torch.logsumexp(log_likelihood_table(model, codes) + log_p, 1)
    x = tensors[REGISTRY_KEYS.X_KEY]
    at_depth = [
        type(px)(mu=px.scale * x[i].sum(), theta=px.theta, scale=px.scale).log_prob(x[i]).sum(-1)
        for i in range(len(x))
    ]
    log_px_z = torch.stack(at_depth, 1).double()  # of draw (row) and anchor cell (column)
    log_qz = torch.stack([qz.log_prob(z).sum(-1) for z in zs]).double()
    log_pz = log_prior_by_hand(prior, zs.double())
    weights = torch.logsumexp(
        log_pz[:, None] + log_px_z - log_px[None] - torch.logsumexp(log_qz, 1, keepdim=True), 1
    )
    assert np.allclose(ours, weights.softmax(0).numpy(), atol=0.02)
    assert ours.sum() == pytest.approx(1, abs=1e-5)


# -- posterior ---------------------------------------------------------------------------------


def test_bit_posterior_is_what_scvi_reads():
    qz = BitPosterior(torch.tensor([[0.0, 0.3], [1.0, 0.6], [0.5, 1e-9]]))
    assert torch.equal(qz.loc, qz.probs)
    assert torch.allclose(qz.scale.square(), qz.probs * (1 - qz.probs))
    values = qz.sample((1000,))
    assert set(values.unique().tolist()) <= {0.0, 1.0}
    assert qz.log_prob(values).isfinite().all()
    assert qz.entropy().isfinite().all()
    assert torch.equal(subset_distribution(qz, torch.tensor([2, 0])).probs, qz.probs[[2, 0]])
    concatenator = DistributionConcatenator()
    concatenator.store_distribution(qz)
    concatenator.store_distribution(qz)
    assert concatenator.get_concatenated_distributions().probs.shape == (6, 2)
    p = torch.tensor([0.3, 0.9], dtype=torch.float64)
    by_hand = -(p * p.log() + (1 - p) * (1 - p).log())
    assert torch.allclose(BitPosterior(p).entropy(), by_hand)


def test_mixture_of_bits_is_a_probability():
    probs = torch.tensor([[0.0, 1.0, 0.5], [0.9, 0.2, 1.0]], dtype=torch.float64)
    mixture = MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2, dtype=torch.float64)),
        Independent(BitPosterior(probs), 1),
    )
    total = torch.logsumexp(mixture.log_prob(all_states(3).double()), 0)
    assert total.item() == pytest.approx(0, abs=1e-9)
    assert mixture.sample((5,)).shape == (5, 3)


def test_reinmax_is_exact_where_the_decoder_is_quadratic():
    """Gradient of E f over three bits against enumeration, f quadratic in each."""
    torch.manual_seed(0)
    A = torch.randn(3, 3, dtype=torch.float64)
    c = torch.randn(3, dtype=torch.float64)

    def f(z):
        return ((z @ A) * z).sum(-1) + z @ c

    logits = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    states = all_states(3).double()
    log_q = BitPosterior(logits.sigmoid()).log_prob(states).sum(-1)
    exact = torch.autograd.grad((log_q.exp() * f(states)).sum(), logits)[0]
    n = 200_000
    wide = logits.detach().expand(n, -1).clone().requires_grad_()
    grads = torch.autograd.grad(f(draw_bits(wide, "reinmax")).sum(), wide)[0]
    assert ((grads.mean(0) - exact).abs() < 5 * grads.std(0) / np.sqrt(n)).all()


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_drawn_bits_are_the_posterior_samples_and_carry_a_gradient(relaxation):
    logits = torch.randn(50, 4, requires_grad=True)
    torch.manual_seed(0)
    z = draw_bits(logits, relaxation)
    torch.manual_seed(0)
    assert torch.equal(z, BitPosterior(logits.sigmoid()).sample())
    (slope,) = torch.autograd.grad(z.sum(), logits)
    assert (slope > 0).all()


def test_gumbel_slope_is_that_of_the_concrete_draw():
    logits, temperature = torch.linspace(-2, 2, 9, dtype=torch.float64), 0.7
    torch.manual_seed(0)
    u = torch.rand_like(logits)
    torch.manual_seed(0)
    wide = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(draw_bits(wide, "gumbel", temperature).sum(), wide)

    def concrete(x):
        return 1 / (1 + torch.exp(-(x - torch.log(u / (1 - u))) / temperature))

    numeric = (concrete(logits + 1e-6) - concrete(logits - 1e-6)) / 2e-6
    assert torch.allclose(slope, numeric, atol=1e-6)
