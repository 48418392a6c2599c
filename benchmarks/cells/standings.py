"""Who leads by how much: results/benchmark.csv as one table a question."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DATASETS
from methods import RIVALS

from scqbm import benchmark

RUN = ["dataset", "cells", "method", "rate", "seed"]
OUR_DEFAULT = "QBMVI"
SCVIS = [name for name in RIVALS if name.startswith("SCVI")]


@dataclass(frozen=True)
class Question:
    """One table: a figure of one task, and whom it is compared with."""

    title: str
    task: str
    group: str
    metric: str
    sign: int = 1  # -1: lower is better
    rivals: tuple = tuple(RIVALS)
    digits: int = 3


QUESTIONS = [
    Question("Integration: scib-metrics Total", "integration", "aggregate", "Total"),
    Question("Batch correction", "integration", "aggregate", "Batch correction"),
    Question("Bio conservation", "integration", "aggregate", "Bio conservation"),
    Question("Leiden ARI at the best resolution", "integration", "leiden", "ARI"),
    Question("Leiden NMI at the best resolution", "integration", "leiden", "NMI"),
    Question(
        "Held-out negative ELBO, nats per cell (lower is better)",
        "likelihood", "likelihood", "negative ELBO", -1, (*SCVIS, "LDVAE"), 1,
    ),
    Question(
        "Held-out marginal log-likelihood, nats per cell",
        "likelihood", "likelihood", "marginal log-likelihood", 1, (*SCVIS, "LDVAE"), 1,
    ),
    Question("Classification, macro-F1 in 5 folds", "classification", "within", "macro-F1"),
    Question("Classification, macro-F1 in unseen batches", "classification", "across", "macro-F1"),
    Question("Trajectory: Kendall's tau of pseudotime", "trajectory", "pseudotime", "Kendall"),
    Question(
        "Trajectory: Kendall's tau within branches",
        "trajectory", "pseudotime", "Kendall within branches",
    ),
    Question("Trajectory: branch accuracy", "trajectory", "pseudotime", "branch accuracy"),
    Question(
        "New cells: two-sample accuracy minus 0.5 (0 is perfect)",
        "generation", "generation", "two-sample accuracy", -1, (*SCVIS, "LDVAE"),
    ),
    Question(
        "New cells: composition, total variation (lower is better)",
        "generation", "generation", "composition", -1, (*SCVIS, "LDVAE"),
    ),
]  # fmt: skip

INTEGRATION = QUESTIONS[:3]
NEGATIVE_ELBO = next(q for q in QUESTIONS if q.metric == "negative ELBO")
ACROSS = next(q for q in QUESTIONS if q.title.endswith("in unseen batches"))
GENERATION = next(q for q in QUESTIONS if q.metric == "two-sample accuracy")
FIGURE = [INTEGRATION[0], ACROSS]
PARTS = [NEGATIVE_ELBO, *INTEGRATION, ACROSS, GENERATION]


def read(path: Path) -> pd.DataFrame:
    """Tidy rows with averages that are comparable within each dataset."""
    rows = pd.read_csv(path, dtype={"cells": str, "rate": str}, keep_default_na=False)
    rows["value"] = pd.to_numeric(rows["value"], errors="coerce")
    rows = rows.drop_duplicates([*RUN, "task", "group", "metric"], keep="last")
    scored = rows["group"].isin(["bio", "batch"])
    parts = [rows[~((rows["task"] == "integration") & (rows["group"] == "aggregate"))]]
    for (dataset, cells), part in rows[scored].groupby(["dataset", "cells"]):
        runs = part[["method", "rate", "seed"]].astype(str).agg("|".join, axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the page lists what was left out
            means = benchmark.aggregates(part.assign(method=runs))
        means[["method", "rate", "seed"]] = means["method"].str.split("|", expand=True)
        means["seed"] = means["seed"].astype(int)
        parts.append(means.assign(dataset=dataset, cells=cells, task="integration"))
    rows = pd.concat(parts, ignore_index=True)
    # an order that does not compare branches has no tau over all of them
    apart = [name for name, dataset in DATASETS.items() if not dataset.one_order]
    rows = rows[~(rows["dataset"].isin(apart) & (rows["metric"] == "Kendall")
                  & (rows["group"] == "pseudotime"))].copy()  # fmt: skip
    off = (rows["metric"] == "two-sample accuracy") & (rows["group"] == "generation")
    rows.loc[off, "value"] = (rows.loc[off, "value"] - 0.5).abs()
    return rows


def of_question(rows: pd.DataFrame, question: Question, cells: str) -> pd.DataFrame:
    """The rows that answer a question."""
    return rows[
        (rows["task"] == question.task)
        & (rows["group"] == question.group)
        & (rows["metric"] == question.metric)
        & (rows["cells"] == cells)
    ].dropna(subset="value")


def by_seed(rows: pd.DataFrame, question: Question, cells: str) -> pd.DataFrame:
    """Dataset and seed by method; each method at the learning rate that is best on the dataset.

    Only runs that went through as many seeds as any other on the dataset count: seeds have splits
    of their own, so that means over different seeds do not compare.
    """
    mine = of_question(rows, question, cells)
    runs = mine.groupby(["dataset", "method", "rate"])["value"].agg(["mean", "size"]).reset_index()
    runs = runs[runs["size"] == runs.groupby("dataset")["size"].transform("max")]
    runs["mean"] *= question.sign
    best = runs.sort_values("mean").drop_duplicates(["dataset", "method"], keep="last")
    mine = mine.merge(best[["dataset", "method", "rate"]])
    return mine.pivot(index=["dataset", "seed"], columns="method", values="value")


def means(rows: pd.DataFrame, question: Question, cells: str) -> pd.DataFrame:
    """Mean over seeds, dataset by method."""
    return by_seed(rows, question, cells).groupby("dataset").mean()


def leads(runs: pd.DataFrame, question: Question) -> pd.DataFrame:
    """For each dataset the best rival, its mean and ours, the difference and its error.

    Positive differences are ours; ``runs`` are those of :func:`by_seed`.
    """
    wide = runs.groupby("dataset").mean()
    rivals = [m for m in question.rivals if m in wide]
    if OUR_DEFAULT not in wide or not rivals:
        return pd.DataFrame(columns=["rival", "theirs", "ours", "gap", "error"])
    found = {}
    for dataset in wide.index[wide[OUR_DEFAULT].notna() & wide[rivals].notna().any(axis=1)]:
        best = (wide.loc[dataset, rivals] * question.sign).idxmax()
        gaps = (runs.loc[dataset, OUR_DEFAULT] - runs.loc[dataset, best]) * question.sign
        found[dataset] = {
            "rival": best,
            "theirs": wide.loc[dataset, best],
            "ours": wide.loc[dataset, OUR_DEFAULT],
            "gap": gaps.mean(),
            "error": gaps.std() / np.sqrt(len(gaps)) if len(gaps) > 1 else np.nan,
        }
    return pd.DataFrame.from_dict(found, orient="index")


def with_error(lead: pd.Series, digits: int) -> str:
    """A difference and its standard error over seeds, if there are several."""
    error = "" if np.isnan(lead["error"]) else f" ± {lead['error']:.{digits}f}"
    return f"{lead['gap']:+.{digits}f}{error}"
