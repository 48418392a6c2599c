"""Held-out negative ELBO of QBMVI and SCVI on the real datasets with batches.

python benchmarks/archive/elbo.py [--datasets ...] [--methods ...] [--seeds 0 1 2] [--quick]

Same genes, splits, epochs, learning rate and KL warm-up for all; a row per run is appended to
results/elbo.csv, and runs that are there already are skipped.

Kept for old lines of LOG.md, with the settings of `former.py`; `benchmarks/cells/run.py` compares
methods today.
"""

import argparse
import json
import logging
import platform
import time
import warnings
from pathlib import Path

import former
import numpy as np
import pandas as pd
import scvi
import torch

import scqbm
from scqbm import QBMVI, data

RESULTS = Path(__file__).parents[1] / "results" / "elbo.csv"
EPOCHS = {"pbmc_kang_ifnb": 50, "pancreas_4studies": 150, "covid_liu_30k": 25}
PLAN = {"lr": 3e-3, "n_epochs_kl_warmup": 20}
METHODS = {  # class, arguments, additions to the plan
    "SCVI-10": (scvi.model.SCVI, {"n_latent": 10}, {}),
    "SCVI-30": (scvi.model.SCVI, {"n_latent": 30}, {}),
    "QBMVI": (QBMVI, former.BITS, former.PLAN),
    "QBMVI-unmixed": (QBMVI, former.BITS | {"batch_mixing": 0.0}, former.PLAN),
    "QBMVI-normal": (QBMVI, {"latent_distribution": "normal"}, former.PLAN),
}
DEFAULT = [method for method in METHODS if method != "QBMVI-unmixed"]


def one_run(adata, method, seed, epochs):
    """Train on 90% of the cells and score the rest; one tidy row."""
    scvi.settings.seed = seed
    cls, arguments, additions = METHODS[method]
    cls.setup_anndata(adata, batch_key="batch")
    model = cls(adata, gene_likelihood="nb", **arguments)
    start = time.perf_counter()
    model.train(epochs, train_size=0.9, plan_kwargs=PLAN | additions, enable_progress_bar=False)
    seconds = time.perf_counter() - start
    held_out = model.validation_indices
    elbos = [-float(model.get_elbo(indices=held_out)) for _ in range(5)]
    row = {
        "negative_elbo": np.mean(elbos),
        "reconstruction": abs(
            float(model.get_reconstruction_error(indices=held_out)["reconstruction_loss"])
        ),
        "train_negative_elbo": -float(model.get_elbo(indices=model.train_indices)),
        "seconds": seconds,
    }
    if cls is QBMVI:
        log_z = model.get_log_partition()
        stored = model.module.prior.log_z.item()
        row["negative_elbo"] += log_z.value - stored  # the better estimate, with its error
        row |= {
            "log_z": log_z.value,
            "log_z_error": log_z.error,
            "prior_memory": float(model.history["prior_memory"].iloc[-1, 0]),
        }
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--methods", nargs="+", default=DEFAULT, choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="2,000 cells, 20 epochs, not saved")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name in args.datasets:
        adata = data.prepare(data.load(name), "batch")
        epochs = EPOCHS[name]
        if args.quick:
            keep = np.random.default_rng(0).choice(adata.n_obs, 2000, replace=False)
            adata, epochs = adata[np.sort(keep)].copy(), 20
        for seed in args.seeds:
            for method in args.methods:
                key = {"dataset": name, "method": method, "seed": seed, "epochs": epochs}
                if not args.quick and RESULTS.exists():
                    done = pd.read_csv(RESULTS)
                    if (done[list(key)] == pd.Series(key)).all(axis=1).any():
                        continue
                row = (
                    key
                    | one_run(adata, method, seed, epochs)
                    | {
                        "plan": json.dumps(PLAN | METHODS[method][2]),
                        "scqbm": scqbm.__version__,
                        "scvi-tools": scvi.__version__,
                        "torch": torch.__version__,
                        "python": platform.python_version(),
                    }
                )
                print({k: v for k, v in row.items() if k not in ("plan",)}, flush=True)
                if not args.quick:
                    RESULTS.parent.mkdir(exist_ok=True)
                    columns = pd.DataFrame([row]).reindex(columns=COLUMNS)
                    columns.to_csv(RESULTS, mode="a", index=False, header=not RESULTS.exists())


COLUMNS = [
    "dataset", "method", "seed", "epochs", "negative_elbo", "log_z", "log_z_error",
    "reconstruction", "train_negative_elbo", "prior_memory", "seconds", "plan", "scqbm",
    "scvi-tools", "torch", "python",
]  # fmt: skip

if __name__ == "__main__":
    main()
