"""What units do to genes, and which units are coupled."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_one_sentence
from small_models import BITS, BITS_HIDDEN, NORMAL, each_family, trained

from scqbm import match_programs


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
