"""``python -m scqbm.demo``: QBMVI beside SCVI on one dataset, as a table and four figures."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import scvi
from anndata import AnnData, read_h5ad

from scqbm import QBMVI, benchmark
from scqbm.data import prepare, simulate

MAX_CELLS = 10_000  # keeps the demo under ten minutes on two cores


def main(argv: list[str] | None = None) -> None:
    """Train both models at their defaults, write the scib-metrics table and the figures."""
    parser = argparse.ArgumentParser(prog="python -m scqbm.demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="h5ad of raw counts (default: simulated cells)")
    parser.add_argument("--batch-key", default="batch", help="column of obs with the batches")
    parser.add_argument("--labels-key", default="cell_type", help="column of obs with the labels")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder to write")
    parser.add_argument("--epochs", type=int, help="epochs (default: by the number of cells)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    scvi.settings.seed = args.seed

    adata = _cells(args.data, args.batch_key, args.labels_key, args.seed)
    epochs = args.epochs or int(np.clip(400_000 / adata.n_obs, 30, 150))
    print(f"{adata.n_obs} cells, {adata.n_vars} genes, {epochs} epochs a model", flush=True)
    models = {}
    for cls in (QBMVI, scvi.model.SCVI):
        cls.setup_anndata(adata, batch_key=args.batch_key)
        models[cls.__name__] = model = cls(adata, gene_likelihood="nb")
        start = time.perf_counter()
        model.train(epochs, check_val_every_n_epoch=min(5, epochs))
        adata.obsm[f"X_{cls.__name__}"] = model.get_latent_representation()
        elbo = -float(model.get_elbo(indices=model.validation_indices))
        seconds = time.perf_counter() - start
        print(
            f"{cls.__name__}: held-out -ELBO {elbo:.1f} nats a cell, {seconds:.0f} s", flush=True
        )
    adata.obs["prior_energy"] = models["QBMVI"].get_prior_energy()

    embeddings = {name: f"X_{name}" for name in models}
    table = benchmark.integration(adata, args.batch_key, args.labels_key, embeddings, leiden=False)
    table = table.pivot(index="metric", columns="method", values="value").loc[
        table["metric"].drop_duplicates(), list(models)
    ]
    table.to_csv(args.out / "scib.csv")
    print(table.to_string(float_format="{:.3f}".format))
    _figures(adata, models, args.batch_key, args.labels_key, args.out)
    print(f"Table and figures are in {args.out}/")


def _cells(path: Path | None, batch_key: str, labels_key: str, seed: int) -> AnnData:
    if path is None:
        return simulate(n_cells=3000, n_genes=1000, n_batches=3, seed=seed)
    adata = read_h5ad(path)
    for argument, key in (("--batch-key", batch_key), ("--labels-key", labels_key)):
        if key not in adata.obs:
            raise SystemExit(f"{argument}: no column {key!r} in obs; it has {list(adata.obs)}.")
    if adata.n_obs > MAX_CELLS:
        print(f"Using {MAX_CELLS} random cells of {adata.n_obs}.")
        keep = np.random.default_rng(seed).choice(adata.n_obs, MAX_CELLS, replace=False)
        adata = adata[np.sort(keep)].copy()
    return prepare(adata, batch_key)


def _figures(adata: AnnData, models: dict, batch_key: str, labels_key: str, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import scanpy as sc
    import seaborn as sns  # comes with scanpy

    for name in models:
        sc.pp.neighbors(adata, use_rep=f"X_{name}", key_added=name)
        adata.obsm[f"umap_{name}"] = sc.tl.umap(adata, neighbors_key=name, copy=True).obsm[
            "X_umap"
        ]
    for colour, filename in ((batch_key, "umap_batch"), (labels_key, "umap_labels")):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
        for axis, name in zip(axes, models, strict=True):
            last = name == list(models)[-1]
            sc.pl.embedding(
                adata,
                f"umap_{name}",
                color=colour,
                title=f"{name}, {colour}",
                legend_loc="right margin" if last else None,
                frameon=False,
                ax=axis,
                show=False,
            )
        figure.savefig(out / f"{filename}.png", dpi=130)

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, model in models.items():
        for split, style in (("train", ":"), ("validation", "-")):
            curve = model.history[f"elbo_{split}"].iloc[:, 0].dropna()
            curve = curve[curve.index >= 3]  # the first fall would hide the rest
            axis.plot(curve.index, curve, style, label=f"{name} {split}")
    axis.set(xlabel="epoch", ylabel="-ELBO, nats a cell")
    axis.legend(frameon=False)
    figure.savefig(out / "training.png", dpi=130)

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    sc.pl.embedding(
        adata,
        "umap_QBMVI",
        color="prior_energy",
        title="QBMVI, prior energy",
        frameon=False,
        ax=axes[0],
        show=False,
    )
    medians = adata.obs.groupby(labels_key, observed=True)["prior_energy"].median()
    sns.boxplot(
        adata.obs,
        x="prior_energy",
        y=labels_key,
        order=medians.sort_values().index,
        fliersize=1,
        ax=axes[1],
    )
    axes[1].set(xlabel="prior energy (low: typical of the prior)", ylabel="")
    figure.savefig(out / "energy.png", dpi=130)
    plt.close("all")


if __name__ == "__main__":
    main()
