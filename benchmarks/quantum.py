"""Does a transverse field help? The quantum prior beside the RBM with as many hidden units.

python benchmarks/quantum.py [--parts small speed cells] [--datasets pancreas kang-donor covid]
                             [--seeds 0 1 2] [--cells 1500] [--quick]

small: machines that can be enumerated (8 visible, 4 hidden units) learn a distribution over all
       states by exact gradients: that of a classical machine, that of a quantum machine, and the
       hard codes of real cells. The score is KL(data || model) in nats at the end.
speed: time of a training step, quantum over RBM, in pairs.
cells: QBMVI with 64 hidden units besides the code: held-out likelihood, Total, new cells.

The quantum prior has one number more for each hidden unit: 64 of 8,448. Appends tidy rows to
results/quantum.csv and writes docs/results_quantum.md from it. Rows that are there already are
skipped. --quick: few cells and epochs, one seed, nothing is written.
"""

import argparse
import importlib.metadata
import os
import sys
import time
import warnings
from pathlib import Path

if __name__ == "__main__":  # before the imports below, as in cells/run.py
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "scqbm-jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "OMP_NUM_THREADS" in os.environ:  # numba (scanpy) would raise torch's number again
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import numpy as np
import pandas as pd
import scvi
import torch

sys.path.insert(1, str(Path(__file__).parent / "cells"))
from datasets import cells
from tables import markdown

from scqbm import QBMVI, benchmark, data
from scqbm.ising import all_states
from scqbm.prior import RBMPrior, TransverseFieldPrior

RESULTS = Path(__file__).parent / "results" / "quantum.csv"
PAGE = Path(__file__).parents[1] / "docs" / "results_quantum.md"
PRIORS = {"RBM": RBMPrior, "quantum": TransverseFieldPrior}
ARGUMENTS = {"RBM": {}, "quantum": {"prior": "quantum"}}
# the former ones, with which these results were made
PLAN = {"prior_lr": 1e-3, "settle": False}
VISIBLE, HIDDEN = 8, 4
QUIET = {"enable_progress_bar": False}


def small(seed, n_steps):
    """KL of each prior from each distribution over the states of eight bits."""
    states = all_states(VISIBLE).double()
    found = {}
    for what in ("classical machine", "quantum machine", "codes of cells"):
        torch.manual_seed(seed)
        if what == "codes of cells":
            target = _of_cells(states, seed)
        else:
            truth = PRIORS["quantum" if what[0] == "q" else "RBM"](VISIBLE, HIDDEN).double()
            for parameter in truth.parameters():
                torch.nn.init.normal_(parameter, std=2.0)
            target = (-truth.energy(states)).softmax(0).detach()
        for name, cls in PRIORS.items():
            torch.manual_seed(seed + 1)
            prior = cls(VISIBLE, HIDDEN, init_scale=0.1).double()
            optimizer = torch.optim.Adam(prior.parameters(), lr=0.02)
            for _ in range(n_steps):
                optimizer.zero_grad()
                log_p = (-prior.energy(states, prior.rbm(frozen=False))).log_softmax(0)
                loss = torch.xlogy(target, target).sum() - (target * log_p).sum()
                loss.backward()
                optimizer.step()
            found[name, f"KL, {what}"] = loss.item()
            if name == "quantum":
                found[name, f"mean field, {what}"] = prior.gamma.detach().abs().mean().item()
    return found


def _of_cells(states, seed):
    """How often each state of the eight most informative bits of real codes is seen."""
    its_cells = cells("pancreas", 1500, seed)
    model = fit(its_cells, {"n_latent": 32}, 60, seed)
    bits = model.get_latent_representation() > 0.5
    chosen = bits[:, np.argsort(-bits.var(0))[:VISIBLE]]
    rows = chosen @ 2 ** np.arange(VISIBLE)
    counts = np.bincount(rows, minlength=len(states)) + 1e-3
    return torch.tensor(counts / counts.sum())


def fit(its_cells, arguments, epochs, seed):
    """QBMVI with nb on the training cells of the split."""
    scvi.settings.seed = seed
    QBMVI.setup_anndata(its_cells.adata, batch_key=its_cells.dataset.batch)
    model = QBMVI(its_cells.adata, gene_likelihood="nb", **arguments)
    split = [its_cells.train, its_cells.held_out]
    splitter = {"external_indexing": split}
    model.train(epochs, datasplitter_kwargs=splitter, plan_kwargs=PLAN, **QUIET)
    return model


def speed(seed, n_pairs):
    """Time of a step, quantum over RBM: short trainings in turn, the first of each left out."""
    adata = data.simulate(3000, 2000, n_batches=2, seed=seed)
    seconds = {name: [] for name in ARGUMENTS}
    for _ in range(n_pairs + 1):
        for name, arguments in ARGUMENTS.items():
            scvi.settings.seed = seed
            QBMVI.setup_anndata(adata, batch_key="batch")
            model = QBMVI(adata, gene_likelihood="nb", **arguments)
            began = time.perf_counter()
            model.train(4, plan_kwargs=PLAN, **QUIET)
            seconds[name].append(time.perf_counter() - began)
    pairs = zip(seconds["quantum"][1:], seconds["RBM"][1:], strict=True)
    return {("quantum", "time of a step over the RBM's"): np.median([q / r for q, r in pairs])}


def of_cells(its_cells, epochs, seed):
    """Scores of a model with each prior."""
    found = {}
    for name, arguments in ARGUMENTS.items():
        model = fit(its_cells, arguments, epochs, seed)
        dataset, adata = its_cells.dataset, its_cells.adata
        tables = [
            benchmark.likelihood({name: model}, its_cells.held_out, seed=seed),
            benchmark.generation(
                adata, {name: model}, its_cells.held_out, label_key=dataset.label, seed=seed
            ),
            benchmark.integration(
                adata,
                dataset.batch,
                dataset.label,
                {name: model.get_latent_representation()},
                pre_integrated=its_cells.pca,
                seed=seed,
            ),
        ]
        table = pd.concat(tables)
        for metric in ("negative ELBO", "marginal log-likelihood", "two-sample accuracy", "Total"):
            some = table[(table["method"] == name) & (table["metric"] == metric)]
            if len(some):
                found[name, metric] = some["value"].iloc[0]
        if name == "quantum":
            gamma = model.module.prior.gamma.detach().abs()
            found[name, "mean field"] = gamma.mean().item()
    return found


def _mean(values):
    """Mean, and range."""
    text = f"{values.mean():.4g}"
    return text if len(values) == 1 else f"{text} ({values.min():.4g} to {values.max():.4g})"


def page(rows):
    """One line a score; means over seeds with their range."""
    texts = [
        "This page is written by `python benchmarks/quantum.py`, which says what was done. Means "
        "over seeds, with the smallest and the largest of them; the mean difference, seed by "
        "seed, with its standard error. Both priors have 64 hidden units, learn at 1e-3, and do "
        f"not settle after the training. {rows['versions'].iloc[-1]}."
    ]
    for part, some in rows.groupby("part", sort=False):
        table = []
        for (name, metric), group in some.groupby(["dataset", "metric"], sort=False):
            row = {} if part != "cells" else {"dataset": name}
            row["score"] = metric
            values = group.pivot(index="seed", columns="method", values="value")
            for method in PRIORS:
                row[method] = _mean(values[method]) if method in values else ""
            row["difference"] = ""
            if len(values.columns) == len(PRIORS) and len(values) > 1:  # seed by seed
                off = values["quantum"] - values["RBM"]
                row["difference"] = f"{off.mean():+.2g} ± {off.std() / len(off) ** 0.5:.1g}"
            table.append(row)
        texts.append(f"### {part.capitalize()}\n\n{markdown(table)}")
    return "# Quantum prior: results\n\n" + "\n\n".join(texts) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["small", "speed", "cells"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--datasets", nargs="+", default=["pancreas", "kang-donor", "covid"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cells", type=int, default=1500)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    epochs = None
    if args.quick:
        args.cells, args.seeds, epochs = 600, args.seeds[:1], 3
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("scqbm", "scvi-tools", "torch")
    )
    for seed in args.seeds:
        for part in args.parts:
            for name in args.datasets if part == "cells" else ["small machines"]:
                done = set()
                if RESULTS.exists() and not args.quick:
                    known = pd.read_csv(RESULTS)[["part", "dataset", "seed"]].drop_duplicates()
                    done = set(known.itertuples(index=False, name=None))
                if (part, name, seed) in done:
                    continue
                try:
                    if part == "small":
                        found = small(seed, 200 if args.quick else 4000)
                    elif part == "speed":
                        found = speed(seed, 1 if args.quick else 5)
                    else:
                        found = of_cells(cells(name, args.cells, seed), epochs, seed)
                except OSError as error:  # no such file
                    print(f"{name} is left out: {error}", flush=True)
                    continue
                rows = pd.DataFrame(
                    {
                        "part": part,
                        "dataset": name,
                        "seed": seed,
                        "method": method,
                        "metric": metric,
                        "value": f"{value:.5g}",
                    }
                    for (method, metric), value in found.items()
                ).assign(versions=versions)
                print(rows.drop(columns="versions").to_string(header=False), flush=True)
                if not args.quick:
                    rows.to_csv(RESULTS, mode="a", index=False, header=not RESULTS.exists())
    if not args.quick and RESULTS.exists():
        PAGE.write_text(page(pd.read_csv(RESULTS)))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
