"""Likelihood of held-out cells, and synthetic cells beside real ones."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_one_sentence, two_models, value

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
        # the standard error over 600 cells is 0.02
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


# -- which cells: a mask, a list and negative indices are the same -------------------------------


def likelihood_of(models, cells, adata=None):
    return benchmark.likelihood(models[1], cells, adata=adata, n_repeats=1, n_draws=5, max_cells=9)


def generation_of(models, cells, adata=None):
    adata = models[0] if adata is None else adata
    return benchmark.generation(adata, {"SCVI": models[1]["SCVI"]}, cells)


EACH = pytest.mark.parametrize(
    ("score", "name"), [(likelihood_of, "indices"), (generation_of, "held_out")]
)


@EACH
def test_masks_and_negative_indices_score_the_cells_that_they_name(models, score, name):
    n_obs = models[0].n_obs
    mask = np.zeros(n_obs, bool)
    mask[-40:] = True
    positions = np.flatnonzero(mask)
    expected = score(models, positions)
    for same in (mask, list(mask), pd.Series(mask), list(positions), positions - n_obs):
        pd.testing.assert_frame_equal(score(models, same), expected)
    other = score(models, np.arange(40))
    assert not np.allclose(other["value"], expected["value"], rtol=1e-3)


@EACH
def test_cells_that_do_not_exist_are_refused(models, score, name):
    short = models[0][:150].copy()
    for adata, n_obs in ((None, 200), (short, 150)):
        with pytest.raises(ValueError, match=f"`{name}` is a mask of shape") as error:
            score(models, np.ones(n_obs - 1, bool), adata)
        assert_one_sentence(error.value)
        for outside in (n_obs, -n_obs - 1):
            with pytest.raises(ValueError, match=f"`{name}` holds {outside}.*{n_obs} cells"):
                score(models, [0, outside], adata)


def test_cells_of_another_anndata_are_scored(models):
    adata, trained = models
    part = adata[50:150].copy()
    mask = np.arange(100) < 20
    expected = likelihood_of(models, np.arange(50, 70))
    pd.testing.assert_frame_equal(likelihood_of(models, mask, part), expected)


def test_nothing_to_score(models):
    with pytest.raises(ValueError, match="`indices` is empty"):
        likelihood_of(models, np.zeros(200, bool))
    for held_out in (np.zeros(200, bool), np.ones(200, bool), []):
        with pytest.raises(ValueError, match="`held_out` must leave both"):
            generation_of(models, held_out)


def test_models_that_are_none(models):
    adata, trained = models
    for score in (
        lambda models: benchmark.likelihood(models),
        lambda models: benchmark.generation(adata, models, [0, 1]),
    ):
        with pytest.raises(ValueError, match="`models` must be a dict") as error:
            score(trained["SCVI"])
        assert_one_sentence(error.value)
    with pytest.raises(
        ValueError, match=r"`models\['few genes'\]` must be .* 30 columns"
    ) as error:
        benchmark.generation(adata, {"few genes": adata.X[:, :20]}, np.arange(50))
    assert_one_sentence(error.value)


def test_cells_on_request_are_judged_by_type():
    """Against models whose new cells are real cells of the asked type, or of another one."""
    adata = simulate(900, 60, n_types=3, n_batches=1, type_strength=3.0, seed=0)
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    held_out = np.arange(0, 900, 3)

    class Copies:
        """Gives real cells of the type that was asked for, or of the next."""

        def __init__(self, shift):
            self.shift = shift

        def _of(self, like, n):
            names = sorted(set(labels))
            one = names[(names.index(labels[like[0]]) + self.shift) % 3]
            pool = np.intersect1d(
                np.flatnonzero(labels == one), np.delete(np.arange(900), held_out)
            )
            return adata[np.random.default_rng(0).choice(pool, n, replace=n > len(pool))]

        def sample_cells(self, n, like, seed):
            return self._of(like, n)

        def get_latent_representation(self, indices, representation):
            assert representation == "sample"
            return np.zeros((len(indices), 2))

        def decode(self, codes, like, seed):
            return self._of(like, len(codes))

    table = benchmark.conditional_generation(
        adata, {"right": Copies(0), "wrong": Copies(1)}, held_out, "cell_type", n_samples=80
    )
    scores = table[table["group"] == "mean"].set_index(["method", "metric"])["value"]
    assert scores["right", "on type"] > 0.95 and scores["wrong", "on type"] < 0.05
    assert scores["right", "on type, real cells"] > 0.95
    assert scores["right", "on type, own codes"] == scores["right", "on type"]
    assert scores["right", "two-sample accuracy"] < 0.65
    assert scores["wrong", "two-sample accuracy"] > 0.95
    assert set(table["group"]) == {"mean", *labels}
    adata.obs["number"] = pd.factorize(labels)[0]  # labels that are not text
    again = benchmark.conditional_generation(
        adata, {"right": Copies(0)}, held_out, "number", n_samples=80
    )
    assert again[again["metric"] == "on type"]["value"].min() > 0.9
    for given, says in (
        ({"label_key": "type"}, "`label_key` must be a column"),
        ({"label_key": "cell_type", "min_cells": 10_000}, "`min_cells` is 10000"),
        ({"label_key": "cell_type", "n_samples": 0}, "`n_samples` must be an integer"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            benchmark.conditional_generation(adata, {}, held_out, **given)
        assert_one_sentence(error.value)


def test_all_cells_of_another_anndata_are_scored_by_default(models):
    adata, _ = models
    part = adata[50:110].copy()
    expected = likelihood_of(models, np.arange(60), part)
    pd.testing.assert_frame_equal(likelihood_of(models, None, part), expected)


def test_numbers_of_synthetic_cells_do_not_matter():
    """A classifier that predicts the larger group would seem to know nothing."""
    adata = simulate(1200, 50, n_batches=1, n_types=4, seed=0)
    rng = np.random.default_rng(0)
    shuffled = adata.X.toarray()
    for gene in shuffled.T:
        rng.shuffle(gene)
    held_out = np.arange(0, 1200, 6)
    scores = [
        value(
            benchmark.generation(adata, {"x": shuffled[:n]}, held_out), "x", "two-sample accuracy"
        )
        for n in (200, 1200)
    ]
    assert scores[0] > 0.6 and scores[1] == pytest.approx(scores[0], abs=0.08)


def test_the_seed_decides_the_scores_of_cells_on_request(models):
    adata, trained = models
    model = {"QBMVI": trained["QBMVI"]}
    held_out = model["QBMVI"].validation_indices
    tables = [
        benchmark.conditional_generation(
            adata, model, held_out, "cell_type", n_samples=40, min_cells=20, seed=1
        )
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables)
