"""Time to quality: how soon QBMVI's held-out ELBO passes that of a whole training of SCVI.

python benchmarks/quality.py --datasets pancreas kang-donor covid
python benchmarks/quality.py --plot

Both models train with their own defaults (likelihood, width, batch size, epochs) on the same cells
and the same split; SCVI with two learning rates, of which the better counts. The held-out ELBO is
computed at about 40 epochs of each training, and its time counts for both; so does the time in
which QBMVI's prior settles at the end. The curves are in results/quality.csv, and ``--plot`` draws
them in docs/_static/quality.png.
"""

import argparse
import logging
import os
import platform
import sys
import time
import warnings
from pathlib import Path

if "OMP_NUM_THREADS" in os.environ:  # numba (scanpy) would raise it again, for torch as well
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scvi
import torch
from scvi.model._utils import get_max_epochs_heuristic

from scqbm import QBMVI
from scqbm.train import default_epochs

sys.path.insert(0, str(Path(__file__).parent / "cells"))
from datasets import DATASETS, cells

RESULTS = Path(__file__).parent / "results" / "quality.csv"
PICTURE = Path(__file__).parents[1] / "docs" / "_static" / "quality.png"
RATES = (1e-3, 3e-3)  # of SCVI: its own and QBMVI's
POINTS = 40
KEYS = ["dataset", "method", "lr", "seed"]


class Curve(pl.Callback):
    """Held-out -ELBO and the seconds since the training began."""

    def __init__(self):
        self.points = []

    def on_train_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            seconds = time.perf_counter() - self.start
            loss = float(trainer.callback_metrics["elbo_validation"])
            self.points.append((trainer.current_epoch + 1, seconds, loss))


def curve(cls, adata, batch_key, seed, epochs, lr=None):
    """One training, as rows."""
    scvi.settings.seed = seed
    cls.setup_anndata(adata, batch_key=batch_key)
    model, watch = cls(adata), Curve()
    default = default_epochs if cls is QBMVI else get_max_epochs_heuristic
    epochs = epochs or default(adata.n_obs)
    model.train(
        epochs,
        plan_kwargs={} if lr is None else {"lr": lr},
        check_val_every_n_epoch=max(1, round(epochs / POINTS)),
        callbacks=[watch],
        enable_progress_bar=False,
        accelerator="cpu",
    )
    points = pd.DataFrame(watch.points, columns=["epoch", "seconds", "negative_elbo"])
    # to the end of QBMVI's settling, which follows the last epoch
    return points.assign(whole=time.perf_counter() - watch.start), epochs


def run(args):
    for name in args.datasets:
        its = cells(name, None, 0)
        for seed in args.seeds:
            trainings = [("QBMVI", QBMVI, None)]
            trainings += [("SCVI", scvi.model.SCVI, lr) for lr in RATES]
            for method, cls, lr in trainings:
                if method not in args.methods:
                    continue
                asked = args.epochs if method == "QBMVI" else None
                points, epochs = curve(cls, its.adata, its.dataset.batch, seed, asked, lr)
                about = {"dataset": name, "method": method, "lr": lr or "default", "seed": seed}
                about |= {"epochs": epochs, "cells": its.adata.n_obs}
                about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
                about |= {"scvi-tools": scvi.__version__, "python": platform.python_version()}
                save(points.assign(**about), args.out)
                last = points.iloc[-1]
                print(name, method, lr, f"{last.whole:.0f} s, {last.negative_elbo:.2f} nats")


def save(rows, out):
    """Add a curve in the place of that of the same training."""
    if out.exists():
        old = pd.read_csv(out)
        same = (old[KEYS].astype(str) == rows[KEYS].astype(str).iloc[0]).all(axis=1)
        rows = pd.concat([old[~same], rows])
    rows.round(3).to_csv(out, index=False)


def summary(curves):
    """For each dataset and seed: when QBMVI passes SCVI's final ELBO, over SCVI's whole time."""
    rows = []
    for (dataset, seed), both in curves.groupby(["dataset", "seed"], sort=False):
        ours = both[both["method"] == "QBMVI"]
        ends = both[both["method"] == "SCVI"].groupby("lr").tail(1)
        if ours.empty or ends.empty:
            continue
        rival = ends.loc[ends["negative_elbo"].idxmin()]
        passed = ours[ours["negative_elbo"] < rival["negative_elbo"]]["seconds"]
        rows.append(
            {
                "dataset": dataset,
                "seed": seed,
                "SCVI's epochs": rival["epochs"],
                "QBMVI's epochs": ours["epochs"].iloc[0],
                "SCVI's final -ELBO": rival["negative_elbo"],
                "QBMVI's final -ELBO": ours["negative_elbo"].iloc[-1],
                "passed at (of SCVI's time)": passed.min() / rival["whole"],
                "whole training (of SCVI's time)": ours["whole"].iloc[0] / rival["whole"],
            }
        )
    return pd.DataFrame(rows)


def plot(curves):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = curves["dataset"].unique()
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        its = curves[curves["dataset"] == name]
        for (method, lr, _), one in its.groupby(["method", "lr", "seed"]):
            label = method if method == "QBMVI" else f"{method}, lr {lr}"
            color = "C3" if method == "QBMVI" else f"C{RATES.index(float(lr))}"
            ax.plot(one["seconds"], one["negative_elbo"], color=color, label=label)
        low = its["negative_elbo"].min()
        ax.set(title=name, xlabel="seconds", ylim=(low - 1, np.median(its["negative_elbo"]) + 12))
    axes[0, 0].set_ylabel("held-out negative ELBO (nats a cell)")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--datasets", nargs="+", default=["pancreas", "kang-donor", "covid"], choices=DATASETS
    )
    parser.add_argument("--methods", nargs="+", default=["QBMVI", "SCVI"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, help="of QBMVI, in the place of its default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", action="store_true", help="only draw what is there")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if not args.plot:
        run(args)
    curves = pd.read_csv(args.out)
    print(summary(curves).round(2).to_string(index=False))
    if args.plot:
        plot(curves)


if __name__ == "__main__":
    main()
