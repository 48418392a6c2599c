"""Cells of which few have a label: QBMANVI, SCANVI and logistic regressions on the codes.

python benchmarks/labels.py [--datasets covid kang-donor pancreas] [--seeds 0 1 2]
                            [--methods QBMANVI ...] [--cells 2000] [--quick]

SCVI (30 latents, rate 3e-3) and QBMVI (defaults) are trained on all cells without labels. From
each of them, its labelled counterpart is trained with 1 %, 10 % or 50 % of the labels (one of each
type at least), without those of one batch ("batch"), and with half of the labels but none of one
type ("type"). SCANVI trains for 20 epochs with 100 cells of each label, as in the tutorials of
scvi-tools. All scores are of the cells whose label was hidden.

Appends tidy rows to results/labels.csv and writes docs/results_labels.md from it. Rows that are
there already are skipped. --quick: few cells and epochs, one seed, nothing is written.
"""

import argparse
import importlib.metadata
import os
import sys
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

sys.path.insert(1, str(Path(__file__).parent / "cells"))
from datasets import cells, epochs
from tables import markdown

from scqbm import QBMANVI, QBMVI, benchmark

RESULTS = Path(__file__).parent / "results" / "labels.csv"
PAGE = Path(__file__).parents[1] / "docs" / "results_labels.md"
SETTINGS = ["0.01", "0.1", "0.5", "batch", "type"]
METHODS = ["logistic on SCVI", "logistic on QBMVI", "SCANVI", "QBMANVI"]
OF_SCVI = {"logistic on SCVI", "SCANVI"}  # methods that start from it; the others from QBMVI
HIDDEN = "Unknown"
BINS = 15  # of the calibration error
SCANVI_TRAINING = {"max_epochs": 20, "n_samples_per_label": 100}
# the former prior, with which these results were made
FORMER, FORMER_PLAN = {"n_prior_hidden": 0}, {"settle": False}
QUIET = {"enable_progress_bar": False}


def hidden_cells(its_cells, setting, seed):
    """Which cells lose their label; for "type", also the type that nobody knows."""
    rng = np.random.default_rng(seed)
    labels = its_cells.adata.obs[its_cells.dataset.label].astype(str).to_numpy()
    unknown = None
    if setting == "batch":
        batches = its_cells.adata.obs[its_cells.dataset.batch].astype(str).to_numpy()
        return batches == sorted(set(batches))[seed % len(set(batches))], unknown
    share = 0.5 if setting == "type" else float(setting)
    hidden = np.ones(len(labels), bool)
    for name in np.unique(labels):
        some = np.flatnonzero(labels == name)
        hidden[rng.permutation(some)[: max(1, round(share * len(some)))]] = False
    if setting == "type":
        counts = pd.Series(labels).value_counts()
        unknown = rng.choice(sorted(counts.index[counts >= 50]))
        hidden |= labels == unknown
    return hidden, unknown


def calibration_error(probabilities, types, truth):
    """Mean distance of confidence and accuracy over bins of confidence."""
    confidence = probabilities.max(1)
    right = types[probabilities.argmax(1)] == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return sum(
        abs(confidence[bins == i].mean() - right[bins == i].mean()) * (bins == i).mean()
        for i in np.unique(bins)
    )


def scores(table, labels, hidden, unknown, unlikely=None):
    """What predictions are worth on the cells whose label was hidden."""
    from sklearn.metrics import f1_score, roc_auc_score

    types, truth = table.columns.to_numpy(), labels[hidden]
    p = table.to_numpy()[hidden]
    if unknown is not None:
        new = truth == unknown
        found = {"AUROC of the unknown type, by confidence": roc_auc_score(new, -p.max(1))}
        if unlikely is not None:
            name = "AUROC of the unknown type, by energy"
            found[name] = roc_auc_score(new, unlikely[hidden])
        return found
    predicted = types[p.argmax(1)]
    return {
        "macro-F1": f1_score(truth, predicted, average="macro", labels=np.unique(truth)),
        "accuracy": (predicted == truth).mean(),
        "calibration error": calibration_error(p, types, truth),
    }


def logistic(codes, labels, hidden):
    """Probabilities from a regression on the labelled codes, all on one scale."""
    from sklearn.linear_model import LogisticRegression

    codes = (codes - codes.mean(0)) / np.maximum(codes.std(0), 1e-6)
    fit = LogisticRegression(max_iter=2000).fit(codes[~hidden], labels[~hidden])
    return pd.DataFrame(fit.predict_proba(codes), columns=fit.classes_)


def total(its_cells, codes):
    """scib-metrics' Total."""
    table = benchmark.integration(
        its_cells.adata,
        its_cells.dataset.batch,
        its_cells.dataset.label,
        {"method": codes},
        pre_integrated=its_cells.pca,
        seed=its_cells.seed,
    )
    return {"Total": table.loc[table["metric"] == "Total", "value"].iloc[0]}


def unlabelled_models(its_cells, methods, n_epochs, seed):
    """SCVI and QBMVI, as far as methods start from them, trained on all cells without labels."""
    adata, batch = its_cells.adata, its_cells.dataset.batch
    models = {}
    if OF_SCVI & set(methods):
        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(adata, batch_key=batch)
        models["SCVI"] = scvi.model.SCVI(adata, n_latent=30, gene_likelihood="nb")
        n_scvi = n_epochs or epochs(adata.n_obs)
        models["SCVI"].train(n_scvi, plan_kwargs={"lr": 3e-3}, **QUIET)
    if set(methods) - OF_SCVI:
        scvi.settings.seed = seed
        QBMVI.setup_anndata(adata, batch_key=batch)
        models["QBMVI"] = QBMVI(adata, gene_likelihood="nb", **FORMER)
        models["QBMVI"].train(n_epochs, plan_kwargs=FORMER_PLAN, **QUIET)
    return models


def one(its_cells, setting, methods, models, n_epochs, seed):
    """Some methods with one way of hiding labels: method -> scores."""
    adata = its_cells.adata
    labels = adata.obs[its_cells.dataset.label].astype(str).to_numpy()
    hidden, unknown = hidden_cells(its_cells, setting, seed)
    adata.obs["known_label"] = pd.Categorical(np.where(hidden, HIDDEN, labels))
    codes = {name: model.get_latent_representation() for name, model in models.items()}
    found = {}
    for name, z in codes.items():
        if f"logistic on {name}" in methods:
            table = logistic(z, labels, hidden)
            found[f"logistic on {name}"] = scores(table, labels, hidden, unknown)
            if setting == "0.1":
                found[name] = total(its_cells, z)
    if "SCANVI" in methods:
        scvi.settings.seed = seed
        scanvi = scvi.model.SCANVI.from_scvi_model(
            models["SCVI"], HIDDEN, labels_key="known_label"
        )
        scanvi.train(**SCANVI_TRAINING | ({"max_epochs": n_epochs} if n_epochs else {}), **QUIET)
        found["SCANVI"] = scores(scanvi.predict(soft=True), labels, hidden, unknown)
        if setting == "0.1":
            found["SCANVI"] |= total(its_cells, scanvi.get_latent_representation())
    if "QBMANVI" in methods:
        scvi.settings.seed = seed
        ours = QBMANVI.from_qbmvi_model(models["QBMVI"], HIDDEN, labels_key="known_label")
        ours.train(n_epochs, plan_kwargs=FORMER_PLAN, **QUIET)
        unlikely = ours.get_label_energies().to_numpy().min(1)
        found["QBMANVI"] = scores(ours.predict(soft=True), labels, hidden, unknown, unlikely)
        if setting == "0.1":
            found["QBMANVI"] |= total(its_cells, ours.get_latent_representation())
    return found


def page(rows):
    """For each score, one line a dataset and setting; means over seeds with their range."""
    versions, n_cells = rows["versions"].iloc[-1], rows["cells"].iloc[-1]
    n_seeds = rows["seed"].nunique()
    texts = [
        "This page is written by `python benchmarks/labels.py`, which says how the labels were "
        f"hidden. {n_cells} cells of each dataset, {n_seeds} seed{'s' * (n_seeds > 1)}; each "
        "figure is a mean over seeds, with the smallest and the largest of them. *Lead*: QBMANVI "
        "minus SCANVI, with its standard error over seeds. QBMVI and QBMANVI have the "
        f"former prior here (`n_prior_hidden=0`). {versions}."
    ]
    methods = [m for m in ["SCVI", "QBMVI", *METHODS] if m in set(rows["method"])]
    for metric, some in rows.groupby("metric", sort=False):
        table = []
        for (name, setting), group in some.groupby(["dataset", "setting"], sort=False):
            wide = group.pivot_table(index="seed", columns="method", values="value")
            row = {"dataset": name, "labels": setting}
            for method in [m for m in methods if m in set(some["method"])]:
                row[method] = _range(wide[method].dropna()) if method in wide else ""
            if {"QBMANVI", "SCANVI"} <= set(wide):
                lead = (wide["QBMANVI"] - wide["SCANVI"]).dropna()
                row["lead"] = f"{lead.mean():+.3f}"
                if len(lead) > 1:
                    row["lead"] += f" ± {lead.sem():.3f}"
            table.append(row)
        better = " (lower is better)" if metric == "calibration error" else ""
        texts.append(f"### {metric[0].upper()}{metric[1:]}{better}\n\n{markdown(table)}")
    return "# Labels: results\n\n" + "\n\n".join(texts) + "\n"


def _range(values):
    text = f"{values.mean():.3f}"
    return f"{text} ({values.min():.3f} to {values.max():.3f})" if len(values) > 1 else text


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", default=["pancreas", "kang-donor", "covid"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    n_epochs = None
    if args.quick:
        args.cells, args.seeds, n_epochs = 600, args.seeds[:1], 3
    key = ["dataset", "cells", "seed", "setting"]
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("scqbm", "scvi-tools", "torch")
    )
    for seed in args.seeds:
        for name in args.datasets:
            done = set()
            if RESULTS.exists() and not args.quick:
                known = pd.read_csv(RESULTS, usecols=[*key, "method"], dtype=str)
                done = set(known[[*key, "method"]].itertuples(index=False, name=None))
            left = {
                setting: [
                    method
                    for method in args.methods
                    if (name, str(args.cells), str(seed), setting, method) not in done
                ]
                for setting in SETTINGS
            }
            left = {setting: methods for setting, methods in left.items() if methods}
            if not left:
                continue
            try:
                its_cells = cells(name, args.cells, seed)
            except OSError as error:  # no such file
                print(f"{name} is left out: {error}", flush=True)
                continue
            models = unlabelled_models(its_cells, set().union(*left.values()), n_epochs, seed)
            for setting, methods in left.items():
                found = one(its_cells, setting, methods, models, n_epochs, seed)
                where = dict(zip(key, (name, args.cells, seed, setting), strict=True))
                rows = pd.DataFrame(
                    where | {"method": method, "metric": metric, "value": f"{value:.5g}"}
                    for method, its_scores in found.items()
                    for metric, value in its_scores.items()
                ).assign(versions=versions)
                print(rows.drop(columns="versions").to_string(header=False), flush=True)
                if not args.quick:
                    rows.to_csv(RESULTS, mode="a", index=False, header=not RESULTS.exists())
    if not args.quick and RESULTS.exists():
        PAGE.write_text(page(pd.read_csv(RESULTS, dtype={"setting": str})))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
