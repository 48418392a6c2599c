"""QBMVI trained with each sampler: held-out negative ELBO beside the exact sampler's.

OMP_NUM_THREADS=1 python benchmarks/samplers/sampler_training.py [--seeds 0 1 2] [--epochs 50]

Simulated cells and a prior small enough to enumerate, so that log Z is exact and the only
difference is the sampler. Writes results/sampler_training.csv anew, a row per run, and prints the
difference to the exact sampler, seed by seed, with its standard error.
"""

import argparse
import importlib.metadata
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
from samplers import mock_chip

from scqbm import QBMVI, data
from scqbm.samplers import (
    CIMSampler,
    DimodSampler,
    ExactSampler,
    GibbsSampler,
    QPUSampler,
    TemperingSampler,
)

sys.path.append(str(Path(__file__).parents[1] / "archive"))
import former

RESULTS = Path(__file__).parents[1] / "results" / "sampler_training.csv"
N_LATENT = 24
SAMPLERS = {
    "Exact": ExactSampler,
    "Gibbs": lambda: GibbsSampler(5),
    "Tempering": lambda: TemperingSampler(n_replicas=8, n_start=200),
    "Simulated annealing": DimodSampler.simulated_annealing,
    "Path integral annealing": lambda: DimodSampler.path_integral_annealing(100),
    "QPU mock, Zephyr, embedded": lambda: QPUSampler(mock_chip()),
    "CIM, simulated": CIMSampler,
}
# another prior, with the couplings of a chip: compared with its own exact run
NATIVE = {
    "Exact, native": ExactSampler,
    "QPU mock, Zephyr, native": lambda: QPUSampler(mock_chip()),
}


def run(adata, sampler, seed, epochs, **kwargs):
    scvi.settings.seed = seed
    QBMVI.setup_anndata(adata, batch_key="batch")
    arguments = former.BITS | kwargs
    model = QBMVI(adata, n_latent=N_LATENT, n_hidden=64, gene_likelihood="nb", **arguments)
    start = time.perf_counter()
    model.train(
        epochs,
        sampler=sampler,
        train_size=0.8,
        accelerator="cpu",
        enable_progress_bar=False,
        plan_kwargs=former.PLAN | {"lr": 3e-3, "n_epochs_kl_warmup": 10},
    )
    seconds = time.perf_counter() - start
    held_out = model.validation_indices
    elbos = [-float(model.get_elbo(indices=held_out)) for _ in range(10)]
    return {
        "negative_elbo": np.mean(elbos),
        "draw_error": np.std(elbos, ddof=1) / len(elbos) ** 0.5,
        "prior_beta": float(model.history["prior_beta"].iloc[-1, 0]),
        "prior_ess": float(model.history["prior_ess"].iloc[-1, 0]),
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="two epochs, nothing written")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = data.simulate(n_cells=400, n_genes=200, n_types=4, seed=0)
    rows = []
    for seed in [0] if given.quick else given.seeds:
        for name, make in {**SAMPLERS, **NATIVE}.items():
            prior = {"prior_topology": "zephyr"} if name in NATIVE else {}
            figures = run(adata, make(), seed, 2 if given.quick else given.epochs, **prior)
            rows.append({"sampler": name, "seed": seed, "epochs": given.epochs, **figures})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table["scvi-tools"] = scvi.__version__
    table["dwave-samplers"] = importlib.metadata.version("dwave-samplers")
    if given.quick:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    table.to_csv(RESULTS, index=False, float_format="%.4g")
    wide = table.pivot(index="seed", columns="sampler", values="negative_elbo")
    for name in wide:
        beside = "Exact, native" if name in NATIVE else "Exact"
        off = wide[name] - wide[beside]
        error = off.std() / len(off) ** 0.5
        print(f"{name}: {wide[name].mean():.2f}, less exact {off.mean():+.2f} +- {error:.2f}")


if __name__ == "__main__":
    main()
