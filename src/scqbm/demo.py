"""``python -m scqbm.demo``: QBMVI beside SCVI on one dataset, as a table of scores and figures."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData, read_h5ad
from lightning.pytorch.callbacks import Callback

from scqbm import QBMANVI, QBMVI, benchmark, pl
from scqbm.data import prepare, simulate
from scqbm.train import DEFAULT_LR, KL_WARMUP, Falling

MAX_CELLS = 10_000  # keeps the demo short
LABELS = "cell_type"
PCA = "PCA"  # before integration
KNOWN, UNKNOWN = 0.1, "Unknown"  # share of the types that QBMANVI is told, and the other cells
MODELS = {"QBMVI": QBMVI, "SCVI": scvi.model.SCVI}


def main(argv: list[str] | None = None) -> None:
    """Train both models at their defaults, and write the table of scores and the figures.

    Parameters
    ----------
    argv
        Arguments of the command line; by default those of the running program.
    """
    args = _arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    scvi.settings.seed = args.seed
    what = "simulated cells" if args.data is None else args.data
    _say(f"Training QBMVI and SCVI on {what}. The results will be in {args.out}/.")
    _say(
        "This takes about 90 seconds on two idle cores."
        if args.data is None
        else "This takes minutes: the more cells, the longer, up to 10,000 cells."
    )
    _one_thread()

    adata = _cells(args.data, args.seed)
    label_key = _label_key(adata, args.batch_key, args.labels_key)
    if label_key is None:
        _say("No cell types (--labels-key names their column): no scores and no figures of types.")
    if args.data is not None:
        adata = prepare(_subset(adata, args.seed), args.batch_key)
    epochs = args.epochs or int(np.clip(225_000 / adata.n_obs, 30, 150))
    _say(f"{adata.n_obs} cells, {adata.n_vars} genes, {epochs} epochs per model")
    with _second_process() as second:
        models, scores = {}, []
        for name in (PCA, "QBMVI", "SCVI"):
            if name != PCA:
                models[name] = _train(MODELS[name], adata, args.batch_key, epochs)
            if label_key is not None:
                scores.append(_score(second, adata, name, args.batch_key, label_key))
        _figures(adata, models, args.batch_key, label_key, args.out)
        if label_key is not None:
            table = _table([score.result() for score in scores])
            table.to_csv(args.out / "scib.csv")
            _say(table.to_string(float_format="{:.3f}".format))
    if args.labels_key:
        _few_labels(models["QBMVI"], adata, label_key, args.seed)
    _say(f"{'Figures' if label_key is None else 'Scores and figures'} are in {args.out}/")


def _one_thread() -> None:
    """Compute on one thread: two that wait for each other come to a halt where cores are busy.

    numba is told too, since scanpy starts it with all cores, and torch then follows.
    """
    import numba

    numba.set_num_threads(1)
    torch.set_num_threads(1)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scqbm.demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="h5ad of raw counts (default: simulated cells)")
    parser.add_argument(
        "--batch-key", default="batch", help="column of obs with the batches (default: batch)"
    )
    parser.add_argument(
        "--labels-key",
        help="column of obs with the cell types (default: cell_type, if there is one; none with "
        '""); if it is given, QBMANVI also predicts them from a tenth of them',
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo_output"), help="folder for the results"
    )
    parser.add_argument("--epochs", type=int, help="epochs (default: by the number of cells)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    return parser.parse_args(argv)


def _say(text: str) -> None:
    print(text, flush=True)  # at once, also where the output is a file


def _cells(path: Path | None, seed: int) -> AnnData:
    if path is None:
        return simulate(n_cells=3000, n_genes=1000, n_batches=3, seed=seed)
    return read_h5ad(path)


def _label_key(adata: AnnData, batch_key: str, asked: str | None) -> str | None:
    """The column with several cell types, if any; exits if a column that was named is missing."""
    if asked is None and LABELS in adata.obs:
        asked = LABELS
    label_key = asked or None
    for argument, key in (("--batch-key", batch_key), ("--labels-key", label_key)):
        if key is not None and key not in adata.obs:
            raise SystemExit(f"{argument}: no column {key!r} in obs; it has {list(adata.obs)}.")
    one_type = label_key is not None and adata.obs[label_key].nunique() < 2
    return None if one_type else label_key


def _subset(adata: AnnData, seed: int) -> AnnData:
    if adata.n_obs <= MAX_CELLS:
        return adata
    _say(f"Using {MAX_CELLS} random cells of {adata.n_obs}.")
    keep = np.random.default_rng(seed).choice(adata.n_obs, MAX_CELLS, replace=False)
    return adata[np.sort(keep)].copy()


class _FallingRate(Callback):
    """The learning rate of a plan that has no schedule falls as QBMVI's does."""

    def __init__(self, epochs: int):
        self.factor = Falling(epochs)

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        """Set the rate of this epoch."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = DEFAULT_LR * self.factor(trainer.current_epoch)


def _train(cls: Any, adata: AnnData, batch_key: str, epochs: int):
    """One model; adds its embedding, and the prior energy of each cell, to ``adata``."""
    name = cls.__name__
    cls.setup_anndata(adata, batch_key=batch_key)
    model = cls(adata, gene_likelihood="nb")
    start = time.perf_counter()
    # SCVI gets the learning rate, its schedule and the KL warm-up of QBMVI: at its own it is still
    # far from its plateau after so few epochs
    plan = {} if cls is QBMVI else {"lr": DEFAULT_LR, "n_epochs_kl_warmup": KL_WARMUP}
    model.train(
        epochs,
        check_val_every_n_epoch=min(5, epochs),
        plan_kwargs=plan,
        callbacks=[] if cls is QBMVI else [_FallingRate(epochs)],
    )
    adata.obsm[f"X_{name}"] = model.get_latent_representation()
    elbo = -float(model.get_elbo(indices=model.validation_indices))
    seconds = time.perf_counter() - start
    _say(f"{name}: held-out -ELBO {elbo:.1f} nats per cell, {seconds:.0f} s")
    if cls is QBMVI:
        adata.obs["prior_energy"] = model.get_prior_energy()
    return model


def _few_labels(model: QBMVI, adata: AnnData, label_key: str | None, seed: int) -> None:
    """How many types QBMANVI finds if it knows every tenth."""
    if label_key is None:
        return
    rng = np.random.default_rng(seed)
    labels = adata.obs[label_key]
    types = labels.astype(object).where(labels.notna(), UNKNOWN).astype(str).to_numpy()
    typed = types != UNKNOWN
    known = rng.random(adata.n_obs) < KNOWN
    known[np.unique(types, return_index=True)[1]] = True  # one of each type at least
    known &= typed
    adata.obs["known_type"] = pd.Categorical(np.where(known, types, UNKNOWN))
    labelled = QBMANVI.from_qbmvi_model(model, UNKNOWN, labels_key="known_type")
    labelled.train()
    adata.obs["predicted_type"] = predicted = labelled.predict()
    right = (predicted == types)[typed & ~known].mean()
    _say(
        f"With the types of {KNOWN:.0%} of the cells, QBMANVI finds those of {right:.0%} of the "
        "others."
    )


def _second_process() -> Executor:
    """Scores embeddings while the models train: scib-metrics compiles for half a minute."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_one_thread)


def _score(second: Executor, adata: AnnData, name: str, batch_key: str, label_key: str) -> Future:
    """Hand an embedding over to be scored; by the name of a model, or the principal components."""
    obs = adata.obs[[batch_key, label_key]]
    if PCA not in adata.obsm:
        adata.obsm[PCA] = benchmark.pca(adata.X)
    embedding = adata.obsm[PCA if name == PCA else f"X_{name}"]
    cells = AnnData(obs=obs, obsm={name: embedding, "before": adata.obsm[PCA]})
    if obs[batch_key].nunique() < 2:
        batch_key = None  # nothing to mix: the scores of cell types remain
    return second.submit(_scores, cells, batch_key, label_key, name)


def _scores(cells: AnnData, batch_key: str | None, label_key: str, name: str) -> pd.DataFrame:
    """The scores of scib-metrics of one embedding."""
    before = None if batch_key is None else "before"
    return benchmark.integration(
        cells, batch_key, label_key, {name: name}, pre_integrated=before, leiden=False
    )


def _table(scores: list[pd.DataFrame]) -> pd.DataFrame:
    """One column for each embedding, the models first."""
    tidy = pd.concat(scores)
    tidy = tidy[tidy["group"] != "aggregate"]
    tidy = pd.concat([tidy, benchmark.aggregates(tidy)])
    wide = tidy.pivot(index="metric", columns="method", values="value")
    names = list(tidy["method"].unique())
    return wide.loc[tidy["metric"].drop_duplicates(), [*names[1:], names[0]]]


def _figures(
    adata: AnnData, models: dict, batch_key: str, label_key: str | None, out: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import scanpy as sc

    def save(axes, name: str) -> None:
        axes.figure.savefig(out / f"{name}.png", dpi=130)
        plt.close(axes.figure)

    for name in models:
        sc.pp.neighbors(adata, use_rep=f"X_{name}", key_added=name)
        umap = sc.tl.umap(adata, neighbors_key=name, copy=True).obsm["X_umap"]
        adata.obsm[f"umap_{name}"] = umap
    bases = {name: f"umap_{name}" for name in models}
    save(pl.embeddings(adata, bases, batch_key)[0], "umap_batch")
    if label_key is not None:
        save(pl.embeddings(adata, bases, label_key)[0], "umap_labels")
    save(pl.training(models), "training")

    n_panels = 1 if label_key is None else 2
    figure, axes = plt.subplots(
        1, n_panels, figsize=(5.5 * n_panels, 4.5), layout="constrained", squeeze=False
    )
    pl.embeddings(adata, ["umap_QBMVI"], "prior_energy", ax=axes[0, 0])
    axes[0, 0].set_title("QBMVI, prior energy")
    if label_key is not None:
        pl.energy_by_group(adata, label_key, ax=axes[0, 1])
    save(axes[0, 0], "energy")


if __name__ == "__main__":
    main()
