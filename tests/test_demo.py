"""The demo runs on small data, with cell types and without."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from scqbm import demo
from scqbm.benchmark import _integration
from scqbm.data import simulate

METRICS = {  # those that need no compilation by JAX
    "bio": {"silhouette_label": ("Silhouette label",)},
    "batch": {"graph_connectivity": ("Graph connectivity",)},
}
FIGURES = {"umap_batch.png", "training.png", "energy.png"}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the demo on 200 cells: returns the folder it wrote to and what it said."""
    monkeypatch.setattr(_integration, "METRICS", METRICS)  # another process would not know
    monkeypatch.setattr(demo, "_second_process", lambda: ThreadPoolExecutor(1))

    def run(*options, columns=("batch", "cell_type", "library_size"), n_types=3, n_batches=2):
        adata = simulate(200, 60, n_types, n_batches, seed=0)
        adata.obs = adata.obs[list(columns)]
        adata.write_h5ad(tmp_path / "cells.h5ad")
        out = tmp_path / "out"
        demo.main(["--data", str(tmp_path / "cells.h5ad"), "--out", str(out), *options])
        return out, capsys.readouterr().out

    return run


def n_panels(path):
    """Columns of the picture that are wider than high: a panel is about 5.5 by 4.5 inches."""
    height, width = plt.imread(path).shape[:2]
    return round(width / height / (5.5 / 4.5))


def test_demo_with_cell_types(run):
    out, said = run("--epochs", "2")
    assert {file.name for file in out.iterdir()} == FIGURES | {"umap_labels.png", "scib.csv"}
    table = pd.read_csv(out / "scib.csv", index_col=0)
    assert list(table) == ["QBMVI", "SCVI", "PCA"] and table.loc["Total"].between(0, 1).all()
    assert n_panels(out / "energy.png") == 2 and n_panels(out / "umap_batch.png") == 2
    assert said.startswith("Training QBMVI and SCVI on ") and "No cell types" not in said
    assert said.index("200 cells, 60 genes, 2 epochs") < said.index("QBMVI: held-out -ELBO")


def test_demo_predicts_types_if_their_column_is_named(run):
    _, said = run("--epochs", "2", "--labels-key", "cell_type")
    assert "With the types of 10% of the cells, QBMANVI finds those of " in said


@pytest.mark.parametrize(
    ("options", "columns"), [((), ["batch"]), (("--labels-key", ""), ["batch", "cell_type"])]
)
def test_demo_without_cell_types(run, options, columns):
    out, said = run("--epochs", "2", *options, columns=columns)
    assert {file.name for file in out.iterdir()} == FIGURES
    assert n_panels(out / "energy.png") == 1
    assert said.index("No cell types") < said.index("QBMVI: held-out")
    assert f"Figures are in {out}/" in said


def test_one_type_is_no_type_and_one_batch_leaves_the_other_scores(run):
    out, said = run("--epochs", "1", n_types=1)
    assert {file.name for file in out.iterdir()} == FIGURES and "No cell types" in said
    out, said = run("--epochs", "1", n_batches=1)
    metrics = pd.read_csv(out / "scib.csv")["metric"]
    assert set(metrics) == {"Silhouette label", "Bio conservation"}


@pytest.mark.parametrize(
    ("option", "key"),
    [("--labels-key", "annotation"), ("--labels-key", "cell_type"), ("--batch-key", "donor")],
)
def test_columns_that_were_named_must_be_there(run, option, key):
    with pytest.raises(SystemExit, match=f"^{option}: no column '{key}' in obs; it has .*batch"):
        run(option, key, columns=["batch", "library_size"])


def test_the_batches_have_a_default_column_that_must_be_there(run):
    with pytest.raises(SystemExit, match="^--batch-key: no column 'batch' in obs"):
        run(columns=["cell_type"])


def test_a_random_part_of_many_cells(run, monkeypatch):
    monkeypatch.setattr(demo, "MAX_CELLS", 150)
    _, said = run("--epochs", "1", "--labels-key", "")
    assert "Using 150 random cells of 200." in said and "150 cells, 60 genes" in said


def test_the_rate_of_scvi_falls_as_that_of_qbmvi():
    group = {"lr": 1.0}
    trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[group])])
    rates = []
    for trainer.current_epoch in range(100):
        demo._FallingRate(100).on_train_epoch_start(trainer, None)
        rates.append(group["lr"])
    assert rates[0] == rates[30] == 3e-3 and rates[65] == pytest.approx(1.5e-3)
    assert 0 < rates[99] < 1e-4


def test_cells_without_a_type_are_not_one_more_type(monkeypatch, capsys):
    adata = simulate(200, 30, n_types=2, seed=0)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc[adata.obs_names[::2], "cell_type"] = None
    told = []

    class Stub:
        @classmethod
        def from_qbmvi_model(cls, model, unknown, labels_key):
            told.extend(set(adata.obs[labels_key]))
            return cls()

        def train(self):
            pass

        def predict(self):
            return adata.obs["cell_type"].fillna("type_0").to_numpy()

    monkeypatch.setattr(demo, "QBMANVI", Stub)
    demo._few_labels(None, adata, "cell_type", 0)
    assert set(told) == {demo.UNKNOWN, "type_0", "type_1"}
    assert "finds those of 100% of the others" in capsys.readouterr().out
