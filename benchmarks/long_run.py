"""A long training: do weights, chains and the held-out ELBO stay sound?

python benchmarks/long_run.py [--steps 20000] [--precision bf16-mixed] [--plot]

Trains QBMVI at its defaults, but with constant learning rates, on real cells. Every few epochs it
notes the held-out ELBO, the size of the couplings, and the health of the chains: a row of
results/long_run.csv. At the end it compares the moments of the training chains with an independent
run: 2,048 fresh chains, annealed over 2,000 temperatures and run for 10,000 sweeps. The floor is
the error of as many independent draws as there are chains. `--plot` draws the picture of the docs.
"""

import argparse
import logging
import platform
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scvi
import torch

from scqbm import QBMVI, data
from scqbm.samplers import GibbsSampler
from scqbm.train import NegativePhase

RESULTS = Path(__file__).parent / "results" / "long_run.csv"
PICTURE = Path(__file__).parents[1] / "docs" / "_static" / "long_run.png"
SHOWN = {
    "negative_elbo": "held-out −ELBO",
    "coupling_std": "standard deviation\nof the couplings",
    "prior_gap": "energy of the codes less\nthat of the chains, nats",
    "prior_memory": "correlation of the chains\nover an epoch",
}


class Trace(pl.Callback):
    """Notes the state of the training every few epochs."""

    def __init__(self, every):
        self.every, self.rows = every, []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 0 or trainer.current_epoch % self.every:
            return
        rbm, logged = pl_module.module.prior.rbm(), trainer.callback_metrics
        parameters = list(pl_module.module.parameters())
        row = {"steps": trainer.global_step}
        row["negative_elbo"] = float(logged["elbo_validation"])
        row["kl"] = float(logged["kl_local_validation"])
        row |= {
            "log_z": float(pl_module.module.prior.log_z),
            "largest_coupling": float(rbm.W.abs().max()),
            "coupling_std": float(rbm.W.std()),
            "largest_weight": max(float(p.detach().abs().max()) for p in parameters),
            "finite": all(bool(p.isfinite().all()) for p in parameters),
        }
        for name in ("prior_memory", "prior_ess", "prior_beta", "prior_gap"):
            row[name] = float(logged[name])
        self.rows.append(row)
        print(" ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)


def moments(v, h, weights=None):
    """All first moments and the cross moments of the two layers."""
    w = torch.ones(len(v)) if weights is None else weights
    w = w / w.sum()
    return torch.cat([w @ v, w @ h, ((w.unsqueeze(1) * v).T @ h).flatten()])


def check_chains(model, phase):
    """Error of the chains' moments, and that of as many independent draws."""
    rbm = model.module.prior.rbm()
    chains = phase.sampler.sample(rbm, phase.n_draws, phase._draws[0].state, phase.generator)
    reference = GibbsSampler(n_sweeps=10_000, n_anneal=2000).sample(
        rbm, 2048, None, torch.Generator().manual_seed(1)
    )
    truth = moments(reference.visible, reference.hidden)

    def error(some):
        return (some - truth).square().mean().sqrt().item()

    rng, floors = np.random.default_rng(0), []
    for _ in range(20):
        pick = rng.choice(2048, len(chains.visible), replace=False)
        floors.append(error(moments(reference.visible[pick], reference.hidden[pick])))
    ours = moments(chains.visible, chains.hidden, chains.weights)
    return {"moment_error": error(ours), "iid_floor": float(np.mean(floors))}


def plot():
    """The curves of the docs."""
    import matplotlib.pyplot as plt

    rows = pd.read_csv(RESULTS)
    figure, axes = plt.subplots(2, 2, figsize=(8, 5), layout="constrained", sharex=True)
    for ax, (name, label) in zip(axes.flat, SHOWN.items(), strict=True):
        for precision, of in rows.groupby("precision"):
            ax.plot(of["steps"], of[name], label=precision)
        ax.set_ylabel(label)
    axes[0, 0].legend()
    for ax in axes[1]:
        ax.set_xlabel("steps")
    figure.savefig(PICTURE, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--precision", default="bf16-mixed", help='or "32-true"')
    parser.add_argument("--dataset", default="pbmc_kang_ifnb")
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--genes", type=int, default=500, help="variable genes to keep")
    parser.add_argument("--every", type=int, default=5, help="epochs between two rows")
    parser.add_argument("--plot", action="store_true", help="draw the picture, train nothing")
    args = parser.parse_args()
    if args.plot:
        plot()
        return
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed = 0
    adata = data.prepare(data.load(args.dataset), args.batch_key, args.genes)
    QBMVI.setup_anndata(adata, batch_key=args.batch_key)
    model = QBMVI(adata)
    trace = Trace(args.every)
    model.train(
        max_epochs=100_000,
        max_steps=args.steps,
        precision=args.precision,
        plan_kwargs={"n_epochs_constant_lr": None},
        check_val_every_n_epoch=args.every,
        callbacks=[trace],
        enable_progress_bar=False,
    )
    phase = next(c for c in model.trainer.callbacks if isinstance(c, NegativePhase))
    log_z = model.get_log_partition()
    about = {
        "dataset": args.dataset,
        "genes": args.genes,
        "precision": args.precision,
        **check_chains(model, phase),
        "log_z_at_the_end": log_z.value,
        "log_z_error": log_z.error,
        "scvi-tools": scvi.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(about)
    new = pd.DataFrame(trace.rows).assign(**about)
    if RESULTS.exists():
        old = pd.read_csv(RESULTS)
        same = (old["dataset"] == args.dataset) & (old["precision"] == args.precision)
        new = pd.concat([old[~same], new])
    new.to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
