"""On a GPU: the same numbers as on a CPU, and each way to train (skipped without a GPU)."""

import numpy as np
import pytest
import scvi
import torch
from helpers import exact_moments, random_rbm, seeded
from small_models import BITS, BITS_HIDDEN, NORMAL, data
from test_likelihood import FAMILIES, counts, distribution, usual

from scqbm import QBMANVI, QBMVI
from scqbm.ising import effective_number, exact_log_partition, log_partition
from scqbm.likelihood import sparse
from scqbm.samplers import DimodSampler, GibbsSampler, TemperingSampler

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
QUIET = {"accelerator": "gpu", "devices": 1, "batch_size": 32, "enable_progress_bar": False}
QUANTUM = BITS_HIDDEN | {"prior": "quantum"}


def trained(family, epochs=3, adata=None, load_sparse_tensor=False, plan=None, **trainer):
    adata = data() if adata is None else adata
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_hidden=16, **family)
    plan = {"lr": 1e-2, "prior_lr": 0.05} | (plan or {})
    model.train(epochs, plan_kwargs=plan, load_sparse_tensor=load_sparse_tensor, **QUIET | trainer)
    assert np.isfinite(float(model.get_elbo()))
    return model


def value_and_slopes(px_of, parameters, x):
    parameters = [p.clone().requires_grad_() for p in parameters]
    log_prob = px_of(*parameters).log_prob(x)
    weight = torch.linspace(-1, 2, log_prob.numel(), dtype=x.dtype).view_as(log_prob).to(x.device)
    slopes = torch.autograd.grad((weight * log_prob).sum(), parameters, allow_unused=True)
    return [part.cpu() for part in (log_prob.detach(), *slopes) if part is not None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probability_and_gradients(family, dtype):
    parameters, x = usual(), counts(20.0)
    theirs = value_and_slopes(lambda *p: distribution(family, *p), parameters, x)
    ours = value_and_slopes(
        lambda *p: sparse(distribution(family, *p)),
        [p.to("cuda", dtype) for p in parameters],
        x.to("cuda", dtype),
    )
    within = 1e-9 if dtype == torch.float64 else 1e-3
    for one, other in zip(ours, theirs, strict=True):
        assert ((one - other).abs() / (other.abs() + 1)).max() < within


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize(
    "sampler", [GibbsSampler(n_sweeps=50), TemperingSampler(n_sweeps=10, n_replicas=4)]
)
def test_moments_against_enumeration(sampler, gaussian):
    rbm, n = random_rbm(4, 3, gaussian, scale=0.7), 20_000
    generator = seeded(0, "cuda")
    draws = sampler.sample(rbm.to("cuda"), n, None, generator)
    draws = sampler.sample(rbm.to("cuda"), n, draws.state, generator)
    v, h = draws.visible.cpu(), draws.hidden.cpu()
    sampled = torch.cat([v, h, (v.unsqueeze(2) * h.unsqueeze(1)).flatten(1)], 1).double()
    weights = torch.ones(n) if draws.weights is None else draws.weights.cpu()
    weights = (weights / weights.sum()).double()
    exact = torch.cat([m.flatten() for m in exact_moments(rbm)])
    error = sampled.std(0) / effective_number(weights, n) ** 0.5
    assert ((weights @ sampled - exact).abs() < 5 * error).all()


def test_log_partition_against_enumeration():
    rbm = random_rbm(8, 6, scale=0.7)
    estimate = log_partition(rbm.to("cuda"), 1000, 500, seeded(0, "cuda"))
    assert abs(float(estimate.value) - float(exact_log_partition(rbm))) < 0.02


@pytest.mark.parametrize("family", [BITS, BITS_HIDDEN, NORMAL, QUANTUM])
def test_a_trained_model_gives_the_same_on_a_cpu(family, tmp_path):
    model = trained(family)
    assert model.device.type == "cuda"
    model.save(tmp_path / "model", save_anndata=True)
    loaded = QBMVI.load(tmp_path / "model", accelerator="cpu")
    assert loaded.device.type == "cpu"
    here, there = (one.get_latent_representation() for one in (model, loaded))
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4)
    here, there = (one.get_normalized_expression(n_samples=100) for one in (model, loaded))
    np.testing.assert_allclose(here.mean(0), there.mean(0), rtol=0.05, atol=1e-3)
    if not family.get("prior"):
        exact = float(exact_log_partition(model.module.prior.rbm().to("cpu")))
        assert abs(float(model.module.prior.log_z) - exact) < 0.1
    assert abs(float(model.get_elbo()) - float(loaded.get_elbo())) < 2  # both draw codes
    assert model.sample_cells(7).shape == (7, model.adata.n_vars)
    assert np.isfinite(np.asarray(model.get_prior_energy())).all()
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=8)).all()
    model.differential_expression(groupby="batch", silent=True)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16-mixed"},
        {"plan": {"compile": True}},
        {"load_sparse_tensor": True},
        {"early_stopping": True},
        {"sampler": DimodSampler.simulated_annealing()},
        {"sampler": TemperingSampler()},
    ],
    ids=["bf16-mixed", "compile", "sparse", "early", "annealing", "tempering"],
)
def test_each_way_to_train(change):
    adata = data(sparse_format="csr_matrix")
    trained(BITS, adata=adata, **change)


def test_a_gpu_and_a_cpu_learn_the_same():
    adata = data()
    here = trained(BITS, 30, adata)
    there = trained(BITS, 30, adata, accelerator="cpu")
    assert abs(float(here.get_elbo()) - float(there.get_elbo())) < 3


def test_resuming(tmp_path):
    kwargs = {"checkpoint_every": 2, "checkpoint_dir": tmp_path}
    trained(BITS, 2, **kwargs)
    trained(BITS, 4, ckpt_path=tmp_path / "last.ckpt", **kwargs)


def test_labels():
    adata = data()
    QBMANVI.setup_anndata(adata, "labels", "unknown", batch_key="batch")
    model = QBMANVI(adata, n_hidden=16, n_latent=6)
    model.train(2, **QUIET)
    assert len(model.predict()) == adata.n_obs
    assert model.get_label_energies().shape[0] == adata.n_obs
    assert model.sample_cells(5, like={"labels": adata.obs["labels"].iloc[0]}).n_obs == 5


@pytest.mark.parametrize("family", [BITS, BITS_HIDDEN, NORMAL, QUANTUM])
def test_what_a_model_tells(family, tmp_path):
    model, few = trained(family), range(3)
    energies = [model.get_prior_energy(kind=kind, n_samples=5) for kind in ("energy", "csp")]
    energies.append(model.get_prior_energy(relative=True, n_samples=5))
    assert np.isfinite(energies).all()
    assert np.isfinite(float(model.get_log_partition(50, 50).value))
    assert model.get_landscape(n_samples=100, silent=True).n_obs > 0
    assert len(model.get_programs(n_cells=20, silent=True)) > 0
    assert len(model.get_couplings()) > 0
    model.write_results(tmp_path / "results.h5ad", silent=True)
    model.write_samples(tmp_path / "cells.h5ad", 9, silent=True)
    codes = model.sample_prior(9, TemperingSampler())
    assert model.decode(codes).n_obs == len(codes) == 9
    assert model.sample_prior(5, like=few, strength=0.5).shape == (5, model.module.n_latent)
    assert model.sample_cells(5, steer={0: 1.0}).n_obs == 5
