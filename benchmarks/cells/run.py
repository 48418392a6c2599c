"""The benchmark: datasets x methods x seeds -> tidy rows in results/benchmark.csv.

python benchmarks/cells/run.py [--datasets ...] [--methods ...] [--seeds 0 1 2] [--tasks ...]
                               [--cells 1500] [--epochs N] [--quick] [--out FILE]

Rows that are there already are skipped, so that an interrupted run goes on where it stopped.
The first seed tries all learning rates of a method; of those, the other seeds go on with the one
of the best Total and the one of the best held-out ELBO (often the same).
Beside FILE.csv, FILE_runs.csv has one row a training: its plan, time, plateau and versions.
--model '{"n_latent": 64}': QBMVI with these arguments instead, for LOG.md's questions; its rows go
to FILE, which has to be named.
--shifted: instead, batches that differ in more than technique: subsets of 1,500 cells, 150 epochs,
one seed, rows in results/shifts.csv. scVI trains at 3e-3, which gave it the better Total on all
plain subsets. Its likelihood is better at 1e-3 on most of them and is not compared here.
--quick: two datasets, 800 cells, 20 epochs, one seed, to see that all works; its figures mean
nothing.
"""

import argparse
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import time
import warnings
from pathlib import Path

if __name__ == "__main__":  # before the imports below; never where a test imports this file
    # scib-metrics compiles for a minute; the cache keeps that from run to run
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "scqbm-jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if "OMP_NUM_THREADS" in os.environ:  # numba (scanpy) would raise it again, for torch as well
        os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import numpy as np
import pandas as pd
import scvi
from datasets import DATASETS, SHIFTED, cells, epochs
from methods import METHODS, Method, scvi_like

from scqbm import QBMVI, benchmark
from scqbm.benchmark._classification import CLASSIFIERS

RESULTS = Path(__file__).parents[1] / "results"
QUICK = ["kang", "simulated-tree"]
KEY = ["dataset", "cells", "method", "rate", "seed"]
PACKAGES = ("scqbm", "scvi-tools", "scib-metrics", "torch", "scanpy", "scikit-learn", "harmonypy")


def task_integration(fitted, its_cells):
    if its_cells.dataset.batch is None:
        return None
    return benchmark.integration(
        its_cells.adata,
        its_cells.dataset.batch,
        its_cells.dataset.label,
        {"method": fitted.embedding},
        pre_integrated=its_cells.pca,
        max_cells=5000,
        seed=its_cells.seed,
    )


def task_likelihood(fitted, its_cells):
    if not hasattr(fitted.model, "get_marginal_ll"):
        return None
    return benchmark.likelihood({"method": fitted.model}, its_cells.held_out, seed=its_cells.seed)


def task_classification(fitted, its_cells):
    return benchmark.classification(
        its_cells.adata,
        its_cells.dataset.label,
        {"method": fitted.embedding},
        batch_key=its_cells.dataset.batch,
        # boosted trees take most of the time, and many of the shifted batches are small
        classifiers=CLASSIFIERS[: 2 if its_cells.dataset.shift else 3],
        max_cells=3000,
        seed=its_cells.seed,
    )


def task_batches(fitted, its_cells):
    if its_cells.dataset.batch is None:
        return None
    return benchmark.batches(
        its_cells.adata,
        {"method": fitted.embedding},
        its_cells.dataset.batch,
        its_cells.dataset.label,
        seed=its_cells.seed,
    )


def task_trajectory(fitted, its_cells):
    dataset = its_cells.dataset
    if dataset.order is None:
        return None
    energies = {}
    if hasattr(fitted.model, "get_prior_energy"):
        energies["method"] = fitted.model.get_prior_energy()
    return benchmark.trajectory(
        its_cells.adata,
        {"method": fitted.embedding},
        dataset.order,
        root_key=dataset.root,
        branch_key=dataset.branch,
        tips=dataset.tips,
        energies=energies,
        seed=its_cells.seed,
    )


def task_generation(fitted, its_cells):
    if fitted.model is None:
        return None
    table = benchmark.generation(
        its_cells.adata,
        {"method": fitted.model},
        its_cells.held_out,
        label_key=its_cells.dataset.label,
        seed=its_cells.seed,
    )
    # the best that can be expected stands beside each method, as a group of its own
    return table.assign(group=table["group"].where(table["method"] == "method", "real cells"))


NEAR = ["PCA", "Harmony", "SCVI-30", "SCVI-30+", "QBMVI"]  # what --shifted compares
TASKS = {
    "integration": task_integration,
    "likelihood": task_likelihood,
    "classification": task_classification,
    "batches": task_batches,
    "trajectory": task_trajectory,
    "generation": task_generation,
}
HEADLINES = (
    "Total",
    "negative ELBO",
    "macro-F1",
    "partial macro-F1",
    "batch probe",
    "neighbours kept",
    "Kendall within branches",
    "two-sample accuracy",
)


def done(out):
    """Keys and tasks of the rows that are there."""
    if not out.exists():
        return set()
    rows = pd.read_csv(out, usecols=[*KEY, "task"], dtype=str, keep_default_na=False)
    return set(rows.drop_duplicates().itertuples(index=False, name=None))


def append(path, rows):
    """Add rows to a file, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, mode="a", index=False, header=not path.exists())


def one(key, tasks, its_cells, n_epochs, out):
    """Train one method and append the rows of each task as soon as it is done."""
    method = METHODS[key["method"]]
    scvi.settings.seed = key["seed"]
    start = time.perf_counter()
    fitted = method.fit(its_cells, n_epochs, key["rate"] or None)
    training = time.perf_counter() - start
    seconds = {"training": round(training, 1)}
    for task in tasks:
        start = time.perf_counter()
        table = TASKS[task](fitted, its_cells)
        seconds[task] = round(time.perf_counter() - start, 1)
        if table is None:  # remembered, so that nobody tries again
            table = pd.DataFrame([{"group": "none", "metric": "does not apply", "value": np.nan}])
        rows = [
            key | {"task": task} | row[["group", "metric", "value"]].to_dict()
            for _, row in table.iterrows()
        ]
        append(out, [{k: _text(v) for k, v in row.items()} for row in rows])
        show = table[table["metric"].isin(HEADLINES)]
        names = show["group"] + " " + show["metric"]
        print(
            *key.values(),
            task,
            dict(zip(names, show["value"].round(3), strict=True)),
            flush=True,
        )
    run = key | {
        "epochs": n_epochs,
        "n_cells": its_cells.adata.n_obs,
        "n_genes": its_cells.adata.n_vars,
        "width": fitted.embedding.shape[1],
        "late_gain": fitted.late_gain,
        "plan": json.dumps(fitted.plan),
        "seconds": json.dumps(seconds),
        "versions": json.dumps(
            {p: importlib.metadata.version(p) for p in PACKAGES}
            | {"python": platform.python_version()}
        ),
    }
    append(out.with_name(f"{out.stem}_runs.csv"), [run])


def _text(value):
    return f"{value:.6g}" if isinstance(value, float) else value


def chosen_rates(args, name, method, out):
    """Learning rates that serve a method best at the first seed, by Total or by ELBO."""
    rates = METHODS[method].rates
    if len(rates) == 1 or not out.exists():
        return rates
    rows = pd.read_csv(out, dtype={"cells": str})
    rows = rows[
        (rows["dataset"] == name)
        & (rows["cells"] == str(args.cells or "all"))
        & (rows["method"] == method)
        & (rows["seed"] == args.seeds[0])
    ]
    best = set()
    for metric, sign in (("Total", 1), ("negative ELBO", -1)):
        values = rows[rows["metric"] == metric].groupby("rate")["value"].mean() * sign
        if len(values.dropna()):
            best.add(float(values.idxmax()))
    return tuple(rate for rate in rates if rate in best) or rates


def missing(args, name, seed, out):
    """Trainings of a dataset and seed that are wanted and not there, each with its tasks."""
    finished, todo = done(out), []
    for method in args.methods:
        if METHODS[method].needs_batch and DATASETS[name].batch is None:
            continue
        if METHODS[method].needs_truth and DATASETS[name].truth is None:
            continue
        rates = METHODS[method].rates
        if args.quick:
            rates = rates[:1]
        elif args.shifted:
            rates = rates[-1:]
        elif seed != args.seeds[0]:
            rates = chosen_rates(args, name, method, out)
        for rate in rates:
            key = dict(
                zip(KEY, (name, args.cells or "all", method, rate or "", seed), strict=True)
            )
            tasks = [t for t in args.tasks if (*map(str, key.values()), t) not in finished]
            if tasks:
                todo.append((key, tasks))
    return todo


def as_arguments(text):
    """Arguments from JSON, with a sentence for what is none."""
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no object like {{"n_latent": 64}}')
    return arguments


def main():
    local = [n for n, dataset in DATASETS.items() if not (dataset.public or dataset.shift)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--cells", type=int, help="random subset of this size (default: all)")
    parser.add_argument("--epochs", type=int, help="default: about 4,500 steps")
    parser.add_argument("--shifted", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", type=as_arguments, help="arguments of QBMVI, as JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.shifted:
        args.datasets, args.methods = args.datasets or SHIFTED, args.methods or NEAR
        args.cells, args.epochs = args.cells or 1500, args.epochs or 150
        args.seeds, args.out = args.seeds or [0], args.out or RESULTS / "shifts.csv"
        args.tasks = args.tasks or ["integration", "classification", "batches", "trajectory"]
    args.methods, args.tasks = args.methods or list(METHODS), args.tasks or list(TASKS)
    args.seeds = args.seeds or [0, 1, 2]
    if args.model is not None:
        if args.out is None:
            parser.error("--model needs --out: the committed rows are of the defaults")
        args.methods = [json.dumps(args.model)]
        METHODS[args.methods[0]] = Method(scvi_like(QBMVI, **args.model))
    args.datasets = args.datasets or (QUICK if args.quick else local)
    out = args.out or RESULTS / ("benchmark_quick.csv" if args.quick else "benchmark.csv")
    if args.quick:
        args.cells, args.epochs, args.seeds = args.cells or 800, args.epochs or 20, args.seeds[:1]
    for name, seed in itertools.product(args.datasets, args.seeds):
        todo = missing(args, name, seed, out)
        if not todo:
            continue
        try:
            its_cells = cells(name, args.cells, seed)
        except OSError as error:  # no such file, or no network
            print(f"{name} is left out: {error}", flush=True)
            continue
        for key, tasks in todo:
            try:
                one(key, tasks, its_cells, args.epochs or epochs(its_cells.adata.n_obs), out)
            except ImportError as error:  # rivals of other packages
                print(f"{key['method']} is left out: {error}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("scib_metrics").setLevel(logging.WARNING)
    main()
