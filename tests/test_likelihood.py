"""Counts whose log-probability is fast: the same numbers and gradients as scvi-tools'."""

import mpmath
import numpy as np
import pytest
import scvi
import torch
from helpers import seeded
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from small_models import QUIET, data

from scqbm import QBMVI
from scqbm.likelihood import SparseNegativeBinomial, sparse
from scqbm.module import _qbvae

CELLS, GENES = 30, 40
FAMILIES = ("nb", "zinb", "poisson")
every_family = pytest.mark.parametrize("family", FAMILIES)


def distribution(family, mu, theta, logits):
    if family == "nb":
        return NegativeBinomial(mu=mu, theta=theta)
    if family == "zinb":
        return ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits)
    return Poisson(mu)


def usual(shape_of_theta=(GENES,), n_draws=None):
    g = seeded(0)
    shape = (CELLS, GENES) if n_draws is None else (n_draws, CELLS, GENES)
    mu, logits = torch.randn(2, *shape, dtype=torch.float64, generator=g).exp()
    theta = torch.randn(shape_of_theta, dtype=torch.float64, generator=g).exp()
    return mu, theta, logits.log()


def extreme():
    g = seeded(1)
    theta = 10 ** (12 * torch.rand(GENES, dtype=torch.float64, generator=g) - 6)
    mu = 10 ** (12 * torch.rand(CELLS, GENES, dtype=torch.float64, generator=g) - 6)
    return mu, theta, 4 * torch.randn(CELLS, GENES, dtype=torch.float64, generator=g)


def counts(largest=1.0, seed=2):
    """A quarter of non-zeros from 1 to ``largest``; the first cell is empty."""
    g = seeded(seed)
    x = largest ** torch.rand(CELLS, GENES, dtype=torch.float64, generator=g)
    x = x.ceil() * (torch.rand(CELLS, GENES, generator=g) < 0.25)
    x[0] = 0
    return x


def value_and_slopes(px_of, parameters, x):
    """Log-probability, and gradients of a sum of it with unequal weights."""
    parameters = [p.clone().requires_grad_() for p in parameters]
    log_prob = px_of(*parameters).log_prob(x)
    weight = torch.linspace(-1, 2, log_prob.numel(), dtype=torch.float64).view_as(log_prob)
    slopes = torch.autograd.grad((weight * log_prob).sum(), parameters, allow_unused=True)
    return [log_prob.detach(), *(s for s in slopes if s is not None)]


def assert_equals_scvi(family, parameters, x, scale=1.0):
    ours = value_and_slopes(lambda *p: sparse(distribution(family, *p)), parameters, x)
    theirs = value_and_slopes(lambda *p: distribution(family, *p), parameters, x)
    assert len(ours) == len(theirs) == {"nb": 3, "zinb": 4, "poisson": 2}[family]
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        error = (one - other).abs() / (other.abs() + scale)
        assert error.max() < 1e-10


@every_family
@pytest.mark.parametrize("shape_of_theta", [(GENES,), (CELLS, GENES), (1, GENES)])
def test_values_and_gradients_are_scvis(family, shape_of_theta):
    assert_equals_scvi(family, usual(shape_of_theta), counts(20.0))


@every_family
@pytest.mark.parametrize("shape_of_theta", [(GENES,), (CELLS, GENES), (3, CELLS, GENES)])
def test_several_draws_a_cell(family, shape_of_theta):
    assert_equals_scvi(family, usual(shape_of_theta, n_draws=3), counts(20.0))


@every_family
def test_extreme_parameters(family):
    # with theta up to 1e6, scvi-tools adds and takes away lgamma(theta) up to 1e7, so that its own
    # last digit is 1e-9
    assert_equals_scvi(family, extreme(), counts(1e6), scale=10.0)


@every_family
@pytest.mark.parametrize("x", [torch.zeros(CELLS, GENES).double(), counts(9.0)[:1]])
def test_empty_cells_and_single_cells(family, x):
    mu, theta, logits = usual()
    assert_equals_scvi(family, (mu[: len(x)], theta, logits[: len(x)]), x)


def exact(family, x, mu, theta, logit):
    """The definition of the distribution, with 60 digits."""
    x, mu, theta, logit = map(mpmath.mpf, (x, mu, theta, logit))
    if family == "poisson":
        return x * mpmath.log(mu) - mu - mpmath.loggamma(x + 1)
    success = mu / (mu + theta)
    of_nb = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
    of_nb += theta * mpmath.log(1 - success) + x * mpmath.log(success)
    if family == "nb":
        return of_nb
    extra = 1 / (1 + mpmath.exp(-logit))
    return mpmath.log((x == 0) * extra + (1 - extra) * mpmath.exp(of_nb))


@every_family
@pytest.mark.parametrize("scale", ["usual", "large"])
def test_values_and_gradients_of_the_definition(family, scale):
    mu, theta, logits = usual()
    x = counts(20.0)
    if scale == "large":
        mu, x = 1e4 * mu, counts(1e6)
    ours = sparse(distribution(family, mu, theta, logits))
    parameters = [p.requires_grad_() for p in (mu, theta.expand(CELLS, -1).clone(), logits)]
    ours = sparse(distribution(family, *parameters)).log_prob(x)
    slopes = torch.autograd.grad(ours.sum(), parameters, allow_unused=True)
    with mpmath.workdps(60):
        for i, j in [(0, 0), (1, 3), *(counts(20.0).nonzero()[::25].tolist())]:
            point = [p[i, j].item() for p in parameters]
            expected = exact(family, x[i, j].item(), *point)
            # scvi-tools adds 1e-8 to mean and dispersion inside logarithms
            assert ours[i, j].item() == pytest.approx(float(expected), rel=2e-6, abs=1e-6)
            for which, slope in enumerate(slopes):
                if slope is None:
                    continue

                def along(value, i=i, j=j, which=which, point=point):
                    moved = [*point[:which], value, *point[which + 1 :]]
                    return exact(family, x[i, j].item(), *moved)

                derivative = float(mpmath.diff(along, point[which]))
                assert slope[i, j].item() == pytest.approx(derivative, rel=2e-5, abs=2e-6)


@every_family
def test_probabilities_of_all_counts_sum_to_one(family):
    n = 4000
    x = torch.zeros(n, 3, dtype=torch.float64)  # two genes of zeros, or it would be dense
    x[:, 0] = torch.arange(n)
    ones = torch.ones(n, 3, dtype=torch.float64)
    px = sparse(distribution(family, 7.5 * ones, 0.8 * ones, -0.4 * ones))
    probability = px.log_prob(x)[:, 0].exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-6)
    mean = (probability * x[:, 0]).sum().item()
    assert mean == pytest.approx(px.mean[0, 0].item(), rel=1e-6)


@every_family
def test_all_else_is_scvis(family):
    theirs = distribution(family, *usual())
    ours = sparse(theirs)
    assert isinstance(ours, type(theirs)) and ours is not theirs
    assert torch.equal(ours.mean, theirs.mean)
    torch.manual_seed(0)
    drawn = ours.sample()
    torch.manual_seed(0)
    assert torch.equal(drawn, theirs.sample())


@every_family
def test_dense_counts_take_scvis_own_code(family):
    x, parameters = counts() + 1, usual()
    theirs = distribution(family, *parameters)
    assert torch.equal(sparse(theirs).log_prob(x), theirs.log_prob(x))


def test_other_distributions_stay():
    normal = torch.distributions.Normal(0.0, 1.0)
    assert sparse(normal) is normal
    once = sparse(distribution("nb", *usual()))
    assert sparse(once) is once


def test_values_that_are_no_counts():
    x = counts()
    x[1, 1] = 0.5
    with pytest.warns(UserWarning, match="support"):  # as scvi-tools warns
        ours = sparse(distribution("zinb", *usual())).log_prob(x)
    assert torch.isfinite(ours).all()
    assert torch.isfinite(sparse(distribution("nb", *usual())).log_prob(x)).all()


def test_half_precision_gets_single():
    mu, theta, logits = usual()
    x = counts(9.0).float()
    full = sparse(distribution("zinb", mu.float(), theta.float(), logits.float())).log_prob(x)
    half = distribution("zinb", mu.bfloat16(), theta.float(), logits.bfloat16())
    ours = sparse(half).log_prob(x)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, full, rtol=0.05, atol=0.05)


# -- in the model --------------------------------------------------------------------------------


def of_one_minibatch(model, dtype):
    """Loss, importance-weighted likelihood and gradients, with the same noise at each call."""
    module = model.module.to(dtype).eval()
    module.zero_grad()
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=50)))
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    torch.manual_seed(3)
    loss = module(tensors)[2].loss
    loss.backward()
    torch.manual_seed(3)
    marginal = module.marginal_ll(tensors, n_mc_samples=4, n_mc_samples_per_pass=2)
    slopes = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    return [loss.detach(), marginal, *slopes]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gene_likelihood": "nb", "dispersion": "gene-batch"},
        {"gene_likelihood": "poisson"},
        {"dispersion": "gene-cell"},
        {"gene_likelihood": "nb", "dispersion": "gene-label", "use_observed_lib_size": False},
    ],
    ids=str,
)
def test_elbo_and_its_gradients_are_scvis(arguments, monkeypatch):
    adata = data()
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch", labels_key="labels")
    model = QBMVI(adata, n_latent=6, n_hidden=16, **arguments)
    # scvi-tools itself knows no double precision for these
    single = arguments.get("dispersion", "gene") in ("gene-batch", "gene-label")
    dtype, close = (torch.float32, 2e-5) if single else (torch.float64, 1e-10)
    ours = of_one_minibatch(model, dtype)
    monkeypatch.setattr(_qbvae, "sparse", lambda px: px)
    theirs = of_one_minibatch(model, dtype)
    assert len(ours) > 10
    for one, other in zip(ours, theirs, strict=True):
        scale = 1 + other.abs().max()
        assert (one - other).abs().max() < close * scale


def held_out(adata, gene_likelihood):
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, gene_likelihood=gene_likelihood, n_latent=12, n_hidden=32)
    model.train(20, **QUIET)
    elbo = float(model.get_elbo(indices=model.validation_indices))
    return elbo, model.module.generative


@every_family
def test_a_seeded_run_is_as_good_as_with_scvis_own(family, monkeypatch):
    adata = data()
    ours, _ = held_out(adata, family)
    calls = []
    monkeypatch.setattr(_qbvae, "sparse", lambda px: calls.append(type(px)) or px)
    theirs, _ = held_out(adata, family)
    assert calls and ours == pytest.approx(theirs, abs=0.05)


def test_differential_expression_and_samples_know_the_class():
    adata = data()
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, gene_likelihood="nb", n_latent=6, n_hidden=16)
    model.train(1, **QUIET)
    tensors = next(iter(model._make_data_loader(adata)))
    with torch.no_grad():
        px = model.module(tensors, compute_loss=False)[1]["px"]
    assert type(px) is SparseNegativeBinomial
    parameters = model.get_likelihood_parameters()
    assert np.asarray(parameters["dispersions"]).shape == adata.shape
    assert model.posterior_predictive_sample(n_samples=2).shape == (*adata.shape, 2)


def test_compiled_training():
    adata = data()
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=6, n_hidden=16)
    compiled = {"compile": True, "compile_kwargs": {"backend": "eager"}}
    model.train(2, plan_kwargs=compiled, **QUIET)
    assert np.isfinite(float(model.get_elbo()))
