"""A long training: do weights stay finite, and do the chains still follow the prior?

python benchmarks/archive/long_run.py [--epochs 400]

Trains QBMVI with the defaults of the day (128 bits, lr 1e-3) on 1,000 genes of pbmc_kang_ifnb,
then compares the moments of the training chains with an independent run: 2,048 fresh chains,
annealed over 2,000 temperatures and run for 10,000 sweeps. The floor is the error of as many
independent draws as there are chains. Writes results/long_run.csv.

Kept for a figure of docs/results.md, with the settings of `former.py`, not those of today.
"""

import argparse
import logging
import math
import platform
import warnings
from pathlib import Path

import former
import numpy as np
import pandas as pd
import scvi
import torch

from scqbm import QBMVI, data
from scqbm.samplers import GibbsSampler
from scqbm.train import NegativePhase

RESULTS = Path(__file__).parents[1] / "results" / "long_run.csv"


def second_moments(v, h, weights=None):
    """All first moments and the cross moments of the two layers."""
    w = torch.full((len(v),), 1.0) if weights is None else weights
    w = w / w.sum()
    return torch.cat([w @ v, w @ h, ((w.unsqueeze(1) * v).T @ h).flatten()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=400)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed = 0
    adata = data.prepare(data.load("pbmc_kang_ifnb"), "batch", n_top_genes=1000)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, gene_likelihood="nb", **former.BITS)
    plan = former.PLAN | {"lr": 1e-3, "n_epochs_kl_warmup": 400}
    model.train(args.epochs, train_size=0.9, plan_kwargs=plan, enable_progress_bar=False)

    rbm = model.module.prior.rbm()
    phase = next(c for c in model.trainer.callbacks if isinstance(c, NegativePhase))
    chains = phase.sampler.sample(rbm, phase.n_draws, phase._draws.state, phase._generator)
    reference = GibbsSampler(n_sweeps=10_000, n_anneal=2000).sample(
        rbm, 2048, None, torch.Generator().manual_seed(1)
    )
    truth = second_moments(reference.visible, reference.hidden)
    ours = second_moments(chains.visible, chains.hidden, chains.weights)
    error = (ours - truth).square().mean().sqrt()
    rng = np.random.default_rng(0)
    floors = []
    for _ in range(20):  # as many draws as chains, picked from the reference
        pick = rng.choice(2048, len(chains.visible), replace=False)
        sample = second_moments(reference.visible[pick], reference.hidden[pick])
        floors.append((sample - truth).square().mean().sqrt().item())
    log_z = model.get_log_partition()
    row = {
        "epochs": args.epochs,
        "finite": all(p.isfinite().all().item() for p in model.module.parameters()),
        "largest_coupling": rbm.W.abs().max().item(),
        "coupling_std": rbm.W.std().item(),
        "moment_error": error.item(),
        "iid_floor": float(np.mean(floors)),
        "prior_memory": float(model.history["prior_memory"].iloc[-1, 0]),
        "negative_elbo": -float(model.get_elbo(indices=model.validation_indices)),
        "log_z": log_z.value,
        "log_z_error": log_z.error,
        "scvi-tools": scvi.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert math.isfinite(row["negative_elbo"])
    print(row)
    RESULTS.parent.mkdir(exist_ok=True)
    pd.DataFrame([row]).to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
