"""What units do to genes, and which units are coupled."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_one_sentence
from small_models import BITS, BITS_HIDDEN, NORMAL, each_family, trained

from scqbm import match_programs
from scqbm.model._programs import independent_programs


def with_linear_decoder(family):
    """A model whose decoder is log-linear in the code, with known weights."""
    model = trained(family)
    n_genes, n_latent = model.adata.n_vars, family["n_latent"]
    generator = torch.Generator().manual_seed(2)
    weights = 0.3 * torch.randn(n_latent, n_genes, generator=generator)

    class Linear(torch.nn.Module):
        def forward(self, dispersion, z, library, *covariates):
            scale = (z @ weights).softmax(-1)
            rate = library.exp() * scale
            return scale, None, rate, torch.zeros_like(rate)

    model.module.decoder = Linear()
    return model, weights.numpy()


@each_family
def test_effects_of_a_known_decoder(family):
    """log2 of the ratio is the weight of the unit, up to one constant for all genes of a cell."""
    model, weights = with_linear_decoder(family)
    table = model.get_programs(n_genes=None, silent=True)
    n_genes = model.adata.n_vars
    assert len(table) == family["n_latent"] * n_genes
    effects = table.pivot(index="source", columns="target", values="weight")
    effects = effects[model.adata.var_names]
    codes = model.get_latent_representation()
    for i in range(family["n_latent"]):
        wanted = weights[i] / np.log(2)
        if family is NORMAL:
            wanted = wanted * 2 * codes[:, i].std()
        found = effects.loc[f"unit_{i}"].to_numpy()
        np.testing.assert_allclose(found - found.mean(), wanted - wanted.mean(), atol=0.01)
    for _, of_unit in table.groupby("source"):
        assert of_unit["weight"].abs().is_monotonic_decreasing
        assert of_unit["rank"].tolist() == list(range(1, n_genes + 1))


def test_effects_are_means_over_the_posteriors_of_the_other_units():
    """With a decoder in which one unit acts only where another is on, and batches differ."""
    model = trained(BITS)
    n_genes = model.adata.n_vars
    generator = torch.Generator().manual_seed(2)
    product, of_batch = 0.5 * torch.randn(2, n_genes, generator=generator)

    class Product(torch.nn.Module):
        def forward(self, dispersion, z, library, batch, *covariates):
            logits = z[:, :1] * z[:, 1:2] * product + batch.float().reshape(-1, 1) * of_batch
            scale = logits.softmax(-1)
            rate = library.exp() * scale
            return scale, None, rate, torch.zeros_like(rate)

    model.module.decoder = Product()
    table = model.get_programs(units=[0], n_genes=None, silent=True)
    found = table.set_index("target").loc[model.adata.var_names, "weight"].to_numpy()
    codes = model.get_latent_representation()
    batch = model.adata.obs["_scvi_batch"].to_numpy()
    wanted = np.zeros(n_genes)
    for b in (0, 1):  # the second unit is on in this share of the cells of a batch
        on = codes[batch == b, 1].mean() * (batch == b).mean()
        scale = [(z * product + b * of_batch).softmax(-1).log2() for z in (1, 0)]
        wanted += on * (scale[0] - scale[1]).numpy()
    spread = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=0.25 * spread)  # draws of 80 cells
    assert np.corrcoef(found, wanted)[0, 1] > 0.999


@pytest.mark.parametrize("likelihood", ["zinb", "poisson", "normal"])
def test_programs_of_other_likelihoods(likelihood):
    model = trained(BITS, gene_likelihood=likelihood)
    assert model.get_programs(n_genes=None, silent=True)["weight"].abs().max() > 1e-3


def test_cells_without_a_label_are_left_out_of_the_use():
    model = trained()
    model.adata.obs["some"] = pd.Series(["a", None] * 40, index=model.adata.obs_names)
    table = model.get_programs(n_genes=1, labels_key="some", silent=True)
    assert set(table["cell_type"]) == {"a"}
    codes = model.get_latent_representation()[::2]
    np.testing.assert_allclose(table["use"], codes.mean(0), rtol=1e-5)
    model.adata.obs["none"] = np.nan
    assert model.get_programs(n_genes=1, labels_key="none", silent=True)["use"].isna().all()


def test_units_that_change_together_add_up_in_a_linear_decoder():
    model, weights = with_linear_decoder(BITS)
    table = model.get_programs(units={"pair": [0, 3]}, n_genes=None, silent=True)
    found = table.set_index("target").loc[model.adata.var_names, "weight"].to_numpy()
    wanted = (weights[0] + weights[3]) / np.log(2)
    np.testing.assert_allclose(found - found.mean(), wanted - wanted.mean(), atol=0.01)
    assert set(table["source"]) == {"pair"}


def test_the_most_changed_genes_are_kept_and_the_types_are_named():
    model = trained()
    whole = model.get_programs(n_genes=None, silent=True)
    few = model.get_programs(n_genes=3, labels_key="labels", silent=True)
    assert (few.groupby("source").size() == 3).all()
    first = whole[whole["rank"] <= 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(few[list(first)], first)
    codes = model.get_latent_representation()
    labels = model.adata.obs["labels"].to_numpy()
    for source, rows in few.groupby("source"):
        unit = codes[:, int(source.removeprefix("unit_"))]
        means = pd.Series(unit).groupby(labels).mean()
        row = rows.iloc[0]
        assert row["cell_type"] == means.idxmax()
        assert row["use"] == pytest.approx(means.max(), rel=1e-5)
        assert row["use_elsewhere"] == pytest.approx(
            unit[labels != means.idxmax()].mean(), rel=1e-5
        )


@each_family
def test_couplings_in_order(family):
    model = trained(family)
    W = model.module.prior.rbm().W.numpy()
    table = model.get_couplings(None)
    assert len(table) == W.size
    assert table["coupling"].abs().is_monotonic_decreasing
    for _, row in table.head(6).iterrows():
        i = int(row["unit"].removeprefix("unit_"))
        kind, j = row["other"].split("_")
        shift = W.shape[0] if kind == "unit" else 0
        assert row["coupling"] == pytest.approx(W[i, int(j) - shift])
        assert kind == ("unit" if family is BITS else "hidden")
    assert len(model.get_couplings(2)) == 2
    assert BITS_HIDDEN["n_prior_hidden"] > 0


def test_matching_finds_a_permuted_copy_whatever_its_signs():
    rng = np.random.default_rng(0)
    effects = rng.standard_normal((4, 30))

    def table(values):
        frame = pd.DataFrame(values, index=[f"unit_{i}" for i in range(len(values))])
        frame.columns = [f"gene_{j}" for j in range(values.shape[1])]
        return (
            frame.rename_axis("source")
            .reset_index()
            .melt("source", var_name="target", value_name="weight")
        )

    order, signs = [2, 0, 3, 1], np.array([1, -1, 1, -1])[:, None]
    noisy = signs * effects[order] + 0.1 * rng.standard_normal((4, 30))
    match = match_programs(table(effects), table(noisy)).set_index("source")
    for i, j in enumerate(order):
        assert match.loc[f"unit_{j}", "match"] == f"unit_{i}"
    expected = abs(np.corrcoef(effects[2], noisy[0])[0, 1])
    assert match.loc["unit_2", "similarity"] == pytest.approx(expected)
    assert match_programs(table(effects), table(effects))["similarity"].min() > 0.999


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n_genes": 0}, "`n_genes` must be an integer"),
        ({"n_cells": 0}, "`n_cells` must be an integer"),
        ({"units": [7]}, "`units` must name units from 0 to 4, not 7"),
        ({"units": {"a": [-1]}}, "`units` must name units"),
        ({"units": []}, "`units` names no units"),
        ({"units": {"a": []}}, "`units` names no units"),
        ({"units": 3}, "`units` must be a list"),
        ({"units": {"a": 3}}, "`units` must be a list"),
        ({"units": [True]}, "`units` must name units"),
        ({"indices": []}, "`indices` names no cells"),
        ({"labels_key": "type"}, "`labels_key` must be a column"),
        ({"n_programs": 0}, "`n_programs` must be an integer"),
        ({"n_programs": 6}, "`n_programs` must be at most 5"),
        ({"n_programs": 2, "units": [1]}, "leave out `units`"),
        ({"key_added": "programs"}, "it needs `n_programs`"),
        ({"n_programs": 2, "key_added": 3}, "`key_added` must be a name or None, not 3"),
        ({"n_programs": 2, "indices": [0]}, "There are no programs: all cells have the same code"),
    ],
)
def test_bad_programs(given, says):
    with pytest.raises(ValueError, match=says) as error:
        trained().get_programs(**given)
    assert_one_sentence(error.value)


def test_bad_tables():
    with pytest.raises(ValueError, match="`b` must be a table of get_programs") as error:
        match_programs(
            pd.DataFrame({"source": [], "target": [], "weight": []}), pd.DataFrame({"x": []})
        )
    assert_one_sentence(error.value)
    with pytest.raises(ValueError, match="`n` must be an integer"):
        trained().get_couplings(0)


def test_programs_of_many_units_do_not_depend_on_how_units_share_the_work():
    """Known sources, written down by twelve units in two ways, come back as the same programs."""
    rng = np.random.default_rng(0)
    sources = rng.gamma(0.5, size=(3000, 4))
    changes = rng.standard_normal((4, 60)) * np.array([4, 3, 2, 1])[:, None]
    found = []
    for seed in (1, 2):
        mix = np.random.default_rng(seed).standard_normal((4, 12))
        values, effects = sources @ mix, np.linalg.pinv(mix) @ changes
        found.append(independent_programs(values, effects, 4, seed=seed))
    for scores, its_changes in found:
        np.testing.assert_allclose(scores.mean(0), 0, atol=1e-8)
        np.testing.assert_allclose(scores.std(0), 1)
        assert np.diff(np.square(its_changes).sum(1)).max() < 0  # the strongest first
        assert (scores**3).mean(0).min() > 0
        for i in range(4):  # in the order of the known ones, and with their sign
            assert np.corrcoef(scores[:, i], sources[:, i])[0, 1] > 0.99
            wanted = changes[i] * sources[:, i].std()
            np.testing.assert_allclose(its_changes[i], wanted, atol=0.15 * np.abs(wanted).max())


@each_family
def test_programs_of_a_model(family):
    model, weights = with_linear_decoder(family)
    adata, n = model.adata, 3
    adata.obs["some"] = np.arange(adata.n_obs) % 2
    table = model.get_programs(
        n_programs=n, n_genes=None, key_added="programs", labels_key="some", silent=True
    )
    assert table["source"].unique().tolist() == ["program_0", "program_1", "program_2"]
    scores = adata.obsm.pop("programs")
    assert scores.index.equals(adata.obs_names)
    np.testing.assert_allclose(scores.std(ddof=0), 1, rtol=1e-3)
    # the decoder is linear: the scores times the changes are what the code does to the genes,
    # but for what four programs would add and one constant for all genes of a cell
    changes = table.pivot(index="source", columns="target", values="weight")[adata.var_names]
    codes = model.get_latent_representation()
    done = (codes - codes.mean(0)) @ weights / np.log(2)
    done -= done.mean(1, keepdims=True)
    ours = scores.to_numpy() @ changes.to_numpy()
    ours -= ours.mean(1, keepdims=True)
    left = np.square(done - ours).sum() / np.square(done).sum()
    spread = np.linalg.svd(done, compute_uv=False) ** 2
    assert left == pytest.approx(spread[n:].sum() / spread.sum(), abs=0.02)
    assert set(table["cell_type"]) <= {"0", "1"}
    again = model.get_programs(n_programs=n, n_genes=None, silent=True)
    pd.testing.assert_frame_equal(again, table[again.columns])
    model.get_programs(n_programs=n, indices=[3, 5, 6, 9, 11], key_added="programs", silent=True)
    assert adata.obsm.pop("programs").notna().all(axis=1).sum() == 5


def test_fewer_programs_where_units_do_the_same():
    rng = np.random.default_rng(0)
    values, effects = rng.random((50, 3)), np.ones((3, 1)) * rng.standard_normal(10)
    scores, changes = independent_programs(values, effects, 3)
    assert scores.shape == (50, 1)
    assert changes.shape == (1, 10)
    centred = values - values.mean(0)
    np.testing.assert_allclose(scores @ changes, centred @ effects, atol=1e-10)
