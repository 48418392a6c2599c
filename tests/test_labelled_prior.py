"""The prior with a label unit against enumeration of every code and every label."""

import itertools
import math
import pickle

import pytest
import torch
from torch.distributions import Normal

from scqbm.ising import MAX_EXACT_UNITS, all_states, annealed_log_partition
from scqbm.module import BitPosterior
from scqbm.prior import LabelledPrior, RBMPrior
from scqbm.samplers import ExactSampler

N_CELLS = 4
LAYOUTS = pytest.mark.parametrize(
    ("n_labels", "n_latent", "n_hidden"), [(2, 6, 0), (4, 7, 0), (3, 4, 3), (2, 3, 5)]
)


def make_prior(n_labels, n_latent, n_hidden, seed=0, scale=0.8, gaussian=False):
    torch.manual_seed(seed)
    prior = LabelledPrior(n_labels, n_latent, n_hidden, gaussian).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    prior.set_log_partition(prior.log_partition())
    return prior


def enumerated(prior):
    """All codes, and log p(code, label) of each, by the documented formula."""
    a, b, W = prior.visible_bias, prior.hidden_bias, prior.coupling
    v, h = all_states(len(a)).double(), all_states(len(b)).double()
    energy = -((v @ a)[:, None] + (h @ b)[None] + (v - 0.5) @ W @ (h - 0.5).T)
    if prior.in_halves:
        pairs = itertools.product(v.tolist(), h.tolist())
        codes = torch.tensor([tuple(x) + tuple(y) for x, y in pairs]).double()
        log_weight = -energy.flatten()
    else:
        codes, log_weight = v, (-energy).logsumexp(1)
    joint = log_weight[:, None] + prior.label_bias + codes @ prior.label_field.T
    return codes, joint - joint.flatten().logsumexp(0)


def exact_negatives(prior):
    """For each label, every visible state with its probability."""
    codes, log_joint = enumerated(prior)
    n_visible = len(prior.visible_bias)
    v, where = torch.unique(codes[:, :n_visible], dim=0, return_inverse=True)
    of_each = log_joint.detach().softmax(0)
    weights = [torch.zeros(len(v)).double().index_add(0, where, w) for w in of_each.T]
    n_labels = prior.n_labels
    prior.deliver(v.repeat(n_labels, 1), torch.cat(weights), [len(v)] * n_labels)


def log_q_of(codes, probs):
    return torch.where(codes[:, None] > 0, probs[None].log(), (1 - probs[None]).log()).sum(-1)


def enumerated_kl(prior, probs, q_y=None):
    """KL(q(z) q(y) || p(z, y)) per cell; by default with the best q(y)."""
    codes, log_p = enumerated(prior)
    log_q = log_q_of(codes, probs)
    if q_y is None:
        q_y = (prior.label_bias + probs @ prior.label_field.T).softmax(-1)
    expected = log_q.exp().T @ log_p  # cells x labels
    entropies = (log_q.exp() * log_q).sum(0) + torch.xlogy(q_y, q_y).sum(-1)
    return entropies - (q_y * expected).sum(-1)


def posteriors(n_labels):
    """Of labels: two cells whose label is known, and two with some probability of each."""
    torch.manual_seed(7)
    q_y = torch.rand(N_CELLS, n_labels, dtype=torch.float64).softmax(-1)
    q_y[:2] = torch.eye(n_labels, dtype=torch.float64)[:2]
    return q_y


def relative_error(ours, truth):
    return ((ours - truth).norm() / truth.norm()).item()


def on_every_code(prior, probs, term):
    """A term at a draw of each cell's code, on average over q."""
    if prior.in_halves:
        qz = BitPosterior(probs)
        return term(qz, qz.sample())
    codes, _ = enumerated(prior)
    q = log_q_of(codes, probs.detach()).exp()
    of_codes = [term(BitPosterior(probs), code.expand(N_CELLS, -1)) for code in codes]
    return sum((w * x).mean() if x.dim() == 0 else w * x for w, x in zip(q, of_codes, strict=True))


@LAYOUTS
def test_probabilities(n_labels, n_latent, n_hidden):
    prior = make_prior(n_labels, n_latent, n_hidden)
    codes, log_p = enumerated(prior)
    assert torch.allclose(prior.log_prob(codes), log_p.logsumexp(1), rtol=1e-10)
    of_label = log_p - log_p.logsumexp(1, keepdim=True)
    assert torch.allclose(prior.label_scores(codes).log_softmax(-1), of_label, rtol=1e-9)
    assert torch.allclose(prior.label_shares, log_p.exp().sum(0), rtol=1e-10)
    for y, rbm in enumerate(prior.machines()):
        visible, hidden = prior.layers(codes)
        energy = rbm.free_energy(visible) if hidden is None else rbm.energy(visible, hidden)
        assert torch.allclose((-energy).log_softmax(0), log_p[:, y].log_softmax(0), rtol=1e-9)


def test_log_z_is_annealed_label_by_label():
    torch.manual_seed(0)
    prior = LabelledPrior(3, 2 * MAX_EXACT_UNITS + 2, 0).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    estimate = prior.log_partition(3000, 200, torch.Generator().manual_seed(0))
    each = [
        annealed_log_partition(rbm, 4000, 400, torch.Generator().manual_seed(1))
        for rbm in prior.machines()
    ]
    alone = prior.label_bias.detach() + torch.tensor([part.value for part in each])
    assert torch.allclose(estimate.of_labels, alone, atol=0.1)
    assert estimate.value == pytest.approx(alone.logsumexp(0).item(), abs=0.1)
    assert 0 < estimate.error < 0.1


@LAYOUTS
def test_kl_of_cells_without_a_label(n_labels, n_latent, n_hidden):
    prior = make_prior(n_labels, n_latent, n_hidden)
    logits = torch.randn(N_CELLS, n_latent, dtype=torch.float64, requires_grad=True)
    truth = enumerated_kl(prior, logits.sigmoid())
    ours = on_every_code(prior, logits.sigmoid(), prior.kl)
    if not prior.in_halves:  # the entropy and the label's part are the same at every code
        assert ours.shape == truth.shape
    assert torch.allclose(ours, truth, rtol=1e-9)
    if prior.in_halves:  # elsewhere, a draw of the bits carries the gradient of the energy
        by_hand = torch.autograd.grad(truth.mean(), logits, retain_graph=True)[0]
        assert relative_error(torch.autograd.grad(ours.mean(), logits)[0], by_hand) < 1e-9


@LAYOUTS
def test_kl_with_a_posterior_of_the_label(n_labels, n_latent, n_hidden):
    prior = make_prior(n_labels, n_latent, n_hidden)
    probs, q_y = torch.rand(N_CELLS, n_latent, dtype=torch.float64), posteriors(n_labels)
    ours = on_every_code(prior, probs, lambda qz, z: prior.kl(qz, z, labels=q_y))
    assert torch.allclose(ours, enumerated_kl(prior, probs, q_y), rtol=1e-9)
    best = on_every_code(prior, probs, prior.kl)
    assert (best[2:] < ours[2:]).all()


@LAYOUTS
@pytest.mark.parametrize("known", [False, True])
def test_gradient_of_the_prior(n_labels, n_latent, n_hidden, known):
    prior = make_prior(n_labels, n_latent, n_hidden, seed=1)
    probs = torch.rand(N_CELLS, n_latent, dtype=torch.float64)
    q_y = posteriors(n_labels) if known else None
    exact_negatives(prior)
    truth = torch.autograd.grad(enumerated_kl(prior, probs, q_y).mean(), list(prior.parameters()))
    loss = on_every_code(prior, probs, lambda qz, z: prior.contrast(qz, z, labels=q_y))
    assert abs(loss.item()) < 1e-12
    ours = torch.autograd.grad(loss, list(prior.parameters()))
    for name, x, y in zip(dict(prior.named_parameters()), ours, truth, strict=True):
        assert relative_error(x, y) < 1e-9, name


def test_kl_of_continuous_codes():
    prior = make_prior(3, 2, 4, gaussian=True, scale=0.5)
    torch.manual_seed(0)
    qz = Normal(torch.randn(N_CELLS, 2).double(), 0.3 + torch.rand(N_CELLS, 2).double())
    # on a grid: the codes are two numbers
    line = torch.linspace(-9, 9, 601, dtype=torch.float64)
    codes = torch.cartesian_prod(line, line)
    h = all_states(prior.coupling.shape[1]).double()
    a, b, W = prior.visible_bias, prior.hidden_bias, prior.coupling
    energy = codes.square().sum(-1, keepdim=True) / 2 - (codes @ a)[:, None]
    energy = energy - h @ b - codes @ W @ (h - 0.5).T
    area = 2 * math.log(18 / 600)
    joint = (-energy).logsumexp(1)[:, None] + prior.label_bias + codes @ prior.label_field.T
    log_z = joint.flatten().logsumexp(0) + area
    assert prior.log_partition().value == pytest.approx(log_z.item(), abs=1e-8)
    log_q = qz.log_prob(codes[:, None]).sum(-1)
    q_y = prior.label_scores(qz.loc).softmax(-1)
    expected = (log_q + area).exp().T @ (joint - log_z)
    truth = ((log_q + area).exp() * log_q).sum(0) + (q_y * (q_y.log() - expected)).sum(-1)
    torch.manual_seed(1)
    ours = prior.kl(qz, qz.sample((200_000,)))
    assert torch.allclose(ours, truth, atol=0.01)


def test_an_estimate_reaches_other_processes_whole():
    estimate = make_prior(3, 4, 0).log_partition()
    again = pickle.loads(pickle.dumps(estimate))
    assert again == estimate and torch.equal(again.of_labels, estimate.of_labels)


def test_log_z_follows_each_label():
    prior = make_prior(3, 6, 0, scale=0.5)
    draws = [
        ExactSampler().sample(rbm, 20_000, None, torch.Generator().manual_seed(y))
        for y, rbm in enumerate(prior.machines())
    ]
    prior.deliver(torch.cat([d.visible for d in draws]), None, [20_000] * 3)
    before = prior.negative_energy()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    moved = prior.log_mean_exp(before - prior.negative_energy())
    prior.move_log_z(moved)
    exact = prior.log_partition()
    assert torch.allclose(prior.log_masses, exact.of_labels, atol=0.01)
    assert prior.log_z.item() == pytest.approx(exact.value, abs=0.01)


def test_without_fields_it_is_the_plain_prior():
    torch.manual_seed(0)
    plain = RBMPrior(6, 0).double()
    labelled = LabelledPrior(3, 6, 0).double()
    missing = labelled.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert set(missing) == {"label_bias", "label_field", "log_masses"}
    for prior in (plain, labelled):
        prior.set_log_partition(prior.log_partition())
    qz = BitPosterior(torch.rand(N_CELLS, 6).double())
    assert torch.allclose(plain.kl(qz, qz.sample()), labelled.kl(qz, qz.sample()), rtol=1e-12)
