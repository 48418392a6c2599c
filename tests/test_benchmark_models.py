"""Likelihood of held-out cells, and synthetic cells beside real ones."""

import numpy as np
import pytest
import torch
from helpers import two_models, value

from scqbm import benchmark
from scqbm.benchmark._generation import mmd, two_sample_accuracy
from scqbm.data import simulate


@pytest.fixture(scope="module")
def models():
    return two_models()


def test_likelihood_of_models(models):
    _, trained = models
    before = torch.get_rng_state()
    table = benchmark.likelihood(trained, n_draws=200)
    assert torch.equal(before, torch.get_rng_state())
    for name in trained:
        # the importance-weighted bound is the tighter one
        bound = -value(table, name, "negative ELBO")
        assert value(table, name, "marginal log-likelihood") > bound
        assert value(table, name, "reconstruction") < -bound
    assert value(table, "QBMVI", "log Z error") == 0  # six bits: exact
    again = benchmark.likelihood(trained, n_draws=200)
    assert table["value"].equals(again["value"])


def test_two_sample_tests_know_same_from_different():
    rng = np.random.default_rng(0)
    a, b, moved = rng.normal(size=(3, 300, 5))
    moved = moved + 4
    for classifier in ("gradient boosting", "logistic regression"):
        # 600 guesses: a spread of .02
        assert two_sample_accuracy(a, b, classifier) == pytest.approx(0.5, abs=0.08)
        assert two_sample_accuracy(moved, b, classifier) > 0.97
    assert abs(mmd(a, b)) < 0.01
    assert mmd(moved, b) > 0.5
    # unbiased: below zero as often as above
    signs = [mmd(x, y) > 0 for x, y in rng.normal(size=(60, 2, 40, 3))]
    assert 0.25 < np.mean(signs) < 0.75


def test_generation_of_real_and_of_unreal_cells():
    adata = simulate(1200, 100, n_types=3, n_batches=1, type_strength=2.0, seed=0)
    other, adata = adata.X[:300].toarray(), adata[300:].copy()
    held_out, counts = np.arange(0, 900, 3), adata.X.toarray()
    shuffled = np.random.default_rng(0).permuted(other, axis=0)  # same genes, no cells
    one_type = counts[np.flatnonzero(adata.obs["cell_type"] == "type_0")]
    table = benchmark.generation(
        adata,
        {"real": other, "shuffled": shuffled, "one type": one_type},
        held_out,
        label_key="cell_type",
    )
    for method in ("real", "real cells"):
        assert value(table, method, "two-sample accuracy") == pytest.approx(0.5, abs=0.08)
        assert value(table, method, "composition") < 0.1
        assert value(table, method, "gene correlation agreement") > 0.5  # 300 cells, weak ties
    assert value(table, "shuffled", "two-sample accuracy") > 0.8
    assert value(table, "shuffled", "gene zero fraction") < 0.05
    assert value(table, "shuffled", "gene correlation agreement") < 0.3
    assert value(table, "shuffled", "MMD") > 5 * abs(value(table, "real", "MMD"))
    share = (adata.obs["cell_type"].iloc[held_out] != "type_0").mean()
    assert value(table, "one type", "composition") == pytest.approx(share, abs=0.05)


def test_generation_of_both_kinds_of_model(models):
    adata, trained = models
    held_out = trained["SCVI"].validation_indices
    table = benchmark.generation(adata, trained, held_out, label_key="cell_type")
    for name in trained:
        assert 0.3 <= value(table, name, "two-sample accuracy") <= 1
        assert 0 <= value(table, name, "composition") <= 1
