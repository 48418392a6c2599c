"""Write docs/benchmark.md and its figure from results/benchmark.csv: wins and losses alike.

python benchmarks/cells/report.py [--results FILE] [--docs FOLDER]
"""

import argparse
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DATASETS
from methods import ABLATIONS, CONTROLS, OURS, RIVALS

from scqbm import benchmark

sys.path.insert(1, str(Path(__file__).parents[1]))  # before any package of the same name
from tables import markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/benchmark.csv"
SHORTFALLS = Path(__file__).with_name("shortfalls.md")  # of RESULTS: tried, and why it fails
RUN = ["dataset", "cells", "method", "rate", "seed"]
OUR_DEFAULT = "QBMVI"
SCVIS = [name for name in RIVALS if name.startswith("SCVI")]
MEANINGS = {
    "QBMVI-normal": "continuous codes",
    "QBMVI-unmixed": "without the batch-mixing penalty",
    "QBMVI-uncoupled": "the couplings of the prior fixed at zero",
    "QBMVI-frozen": "the prior fixed: independent bits with probability 0.5",
    "QBMVI-28-exact": "28 bits, exact draws from the prior",
    "QBMVI-28-gibbs": "28 bits, the default sampler",
    "QBMVI-28-annealer": "28 bits, simulated annealing as the sampler",
    "SCVI-30+": "scVI with 30 latents and all that QBMVI has besides its prior: batch mixing, "
    "dropouts and the schedule of learning rates",
    "LDVAE": "scVI with a linear decoder",
    "SysVI": "SysVI of scvi-tools, with its VampPrior",
    "paper": "the published recipe of the QBM-VAE paper, in our implementation",
}


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
        "Generated cells: two-sample accuracy minus 0.5 (0 is perfect)",
        "generation", "generation", "two-sample accuracy", -1, (*SCVIS, "LDVAE"),
    ),
    Question(
        "Generated cells: composition, total variation (lower is better)",
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


def compared(runs: pd.DataFrame, question: Question) -> tuple[pd.DataFrame, str]:
    """The table with our lead on the best rival of each dataset, and one line on all of them."""
    wide = runs.groupby("dataset").mean()
    shown = wide[[m for m in [*CONTROLS, *RIVALS, *OURS] if m in wide]]
    table = shown.map(lambda v: "" if np.isnan(v) else f"{v:.{question.digits}f}")
    rivals = [m for m in question.rivals if m in wide]
    if OUR_DEFAULT not in wide or not rivals:
        return table, ""
    signed = wide * question.sign
    known = signed[[OUR_DEFAULT, *rivals]].dropna(subset=[OUR_DEFAULT])
    known = known[known[rivals].notna().any(axis=1)]
    if known.empty:
        return table, ""
    leads = {}
    for dataset in known.index:
        best = known.loc[dataset, rivals].idxmax()
        gaps = (runs.loc[dataset, OUR_DEFAULT] - runs.loc[dataset, best]) * question.sign
        leads[dataset] = gaps.mean()
        error = gaps.std() / np.sqrt(len(gaps)) if len(gaps) > 1 else np.nan
        spread = "" if np.isnan(error) else f" ± {error:.{question.digits}f}"
        table.loc[dataset, "lead"] = f"{gaps.mean():+.{question.digits}f}{spread}"
    table["lead"] = table["lead"].fillna("")
    everywhere = [m for m in rivals if known[m].notna().all()]
    if not everywhere:
        return table, ""
    best = known[everywhere].mean().idxmax()
    gap = known[OUR_DEFAULT] - known[best]
    datasets = "1 dataset" if len(known) == 1 else f"{len(known)} datasets"
    line = (
        f"On average over {datasets}, the lead of {OUR_DEFAULT} over {best}, the rival that is "
        f"best on average, is {gap.mean():+.{question.digits}f} (positive: {OUR_DEFAULT} is "
        "better). "
        f"Compared with the best rival of each dataset, {OUR_DEFAULT} is ahead on "
        f"{sum(v > 0 for v in leads.values())} of {datasets}. Its smallest lead is on "
        f"{min(leads, key=leads.get)}, {min(leads.values()):+.{question.digits}f}."
    )
    return table, line


def as_markdown(table: pd.DataFrame) -> str:
    return markdown([{"dataset": name} | row.to_dict() for name, row in table.iterrows()])


def behind(rows: pd.DataFrame, question: Question, cells: str) -> set[str]:
    """Methods that a dataset's table leaves out because others went through more seeds."""
    there = set(of_question(rows, question, cells).groupby(["dataset", "method"]).groups)
    shown = means(rows, question, cells).stack().dropna().index
    return {method for _, method in there - set(shown)}


def parts(rows: pd.DataFrame, cells: str) -> str:
    """What each part of our model is worth, and rivals of fewer seeds; over the seeds all had."""
    fewer = [m for m in RIVALS if any(m in behind(rows, q, cells) for q in PARTS)]
    others = [*(m for m in OURS if m != OUR_DEFAULT), *ABLATIONS, *fewer]
    names = list(dict.fromkeys([OUR_DEFAULT, *others, "SCVI-10", "SCVI-30"]))
    mine = rows[rows["method"].isin(names) & (rows["cells"] == cells)]
    few = mine[mine["method"].isin(others)]
    if few.empty:
        return ""
    seeds = set.intersection(*few.groupby(["dataset", "method"])["seed"].agg(set))
    mine = mine[mine["seed"].isin(seeds) & mine["dataset"].isin(few["dataset"])]
    listed = ", ".join(map(str, sorted(seeds)))
    parts = [f"Seed {listed} only." if len(seeds) == 1 else f"Seeds {listed}."]
    seen = [name for name in MEANINGS if name in set(few["method"])]
    parts.append("\n".join(f"- *{name}*: {MEANINGS[name]}" for name in seen))
    for question in PARTS:
        wide = means(mine, question, cells)
        shown = wide[[n for n in names if n in wide]].dropna(how="all")
        if shown.empty:
            continue
        text = shown.map(lambda v, d=question.digits: "" if np.isnan(v) else f"{v:.{d}f}")
        parts.append(f"**{question.title}**\n\n{as_markdown(text)}")
    return "\n\n".join(parts)


def energy(rows: pd.DataFrame, cells: str) -> str:
    """Prior energy against the known order, run by run."""
    mine = rows[(rows["group"] == "energy") & (rows["cells"] == cells)]
    if mine.empty:
        return ""
    wide = mine.pivot_table(index=["dataset", "method", "seed"], columns="metric", values="value")
    lines = [
        {
            "dataset": dataset, "method": method, "seed": seed,
            "Kendall": f"{row['Kendall']:+.3f}",
            "share of cell pairs with rising energy": f"{row['rising pairs']:.3f}",
            "p (sign test)": f"{row['p-value']:.2g}" if row["p-value"] > 0 else "< 1e-300",
        }
        for (dataset, method, seed), row in wide.iterrows()
    ]  # fmt: skip
    note = (
        "Kendall's tau between the prior energy and the known order of the cells. A pair is an "
        "early and a late cell, drawn at random; its energy rises if the late cell has the higher "
        "energy."
    )
    return f"{note}\n\n{markdown(lines)}"


def figure(rows: pd.DataFrame, path: Path) -> None:
    """Total and macro-F1 in unseen batches, dataset by dataset."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=False)
    for axis, question in zip(axes, FIGURE, strict=True):
        wide = means(rows, question, "all")
        for method in [m for m in [*RIVALS, OUR_DEFAULT] if m in wide]:
            ours = method == OUR_DEFAULT
            axis.plot(
                wide[method],
                range(len(wide)),
                "D" if ours else "o",
                color="crimson" if ours else None,
                alpha=1 if ours else 0.6,
                zorder=3 if ours else 2,
                label=method,
            )
        axis.set_yticks(range(len(wide)), wide.index)
        axis.set_title(question.title)
        axis.grid(axis="x", alpha=0.3)
    axes[1].legend(frameon=False, bbox_to_anchor=(1.02, 1), loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def page(rows: pd.DataFrame, runs: pd.DataFrame, shortfalls: str = "") -> str:
    """The page as Markdown; ``shortfalls`` is said of these rows."""
    seeds = rows["seed"].nunique()
    text = [
        "# Benchmark",
        "This page is written by `python benchmarks/cells/report.py` from "
        "`benchmarks/results/benchmark.csv`, which `python benchmarks/cells/run.py` writes. It "
        "shows every result: losses as well as wins.",
        f"Each figure is a mean over up to {seeds} seeds, and each seed has its own split into "
        "training and held-out cells. QBMVI always has its default settings. Only its rows of "
        "1,500 cells and its ablations are older: they have the mixing penalty of commit 80e369f, "
        "which compared whole batches only. scVI and similar "
        "rivals were trained with two learning rates, and each table shows, for each dataset, the "
        "rate with the better result there. (Both rates were tried on the first seed. The rate "
        "with the best Total and the rate with the best ELBO were then also used on the other "
        "seeds.)",
        "- *Lead*: QBMVI minus the best rival of that dataset, positive where QBMVI is better, "
        "with its standard error over seeds (no error: one seed).\n"
        "- *noise*: a random embedding. It gets high scores for batch correction, so batch "
        "correction means something only together with bio conservation and macro-F1.\n"
        "- *truth*: for simulated cells, the gene programmes from which their counts were drawn.\n"
        "- *SCVI-10x2*: scVI with 10 latents and two hidden layers; *SCVI-10* has one layer.\n"
        "- *two-sample accuracy*: how often a classifier tells generated cells from held-out real "
        "ones; 0.5 is chance.",
        "![Total and macro-F1 by dataset](_static/benchmark.png)",
    ]
    subsets = sorted(set(rows["cells"]), key=lambda c: c != "all")
    for cells in subsets:
        text.append("## All cells" if cells == "all" else f"## Random subsets of {cells} cells")
        for question in QUESTIONS:
            runs_of = by_seed(rows, question, cells)
            if len(runs_of):
                table, line = compared(runs_of, question)
                text += [f"### {question.title}", as_markdown(table), line]
        last_parts = (
            ("Ablations, and rivals with fewer seeds", parts(rows, cells)),
            ("Prior energy and the order of the cells", energy(rows, cells)),
        )
        for title, part in last_parts:
            if part:
                text += [f"### {title}", part]
    if shortfalls:
        text += ["## Where it falls short", shortfalls.strip()]
    lost = rows[rows["group"].isin(["bio", "batch"]) & rows["value"].isna()]
    if len(lost):
        pairs = lost.groupby(["dataset", "cells"])["metric"].agg(lambda m: sorted(set(m)))
        text += [
            "## Undefined metrics",
            "Left out of the averages of all methods on that dataset: "
            + "; ".join(f"{d} ({c}): {', '.join(m)}" for (d, c), m in pairs.items())
            + ".",
        ]
    if len(runs):
        last = json.loads(runs["versions"].iloc[-1])
        late = runs.groupby("method")["late_gain"].median().dropna()
        text += [
            "## How it was run",
            "Versions: " + ", ".join(f"{k} {v}" for k, v in last.items()) + ".",
            "Had training converged? Improvement of the held-out loss from the second-to-last to "
            "the last tenth of the epochs, in units of the method's own loss (median over runs): "
            + ", ".join(f"{k} {v:.2g}" for k, v in late.items())
            + ".",
        ]
    return "\n\n".join(part for part in text if part) + "\n"


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    rows = read(args.results)
    beside = args.results.with_name(f"{args.results.stem}_runs.csv")
    runs = pd.read_csv(beside) if beside.exists() else pd.DataFrame()
    figure(rows, args.docs / "_static" / "benchmark.png")
    ours = args.results.resolve() == RESULTS.resolve()  # other rows may fall short elsewhere
    text = page(rows, runs, SHORTFALLS.read_text() if ours else "")
    (args.docs / "benchmark.md").write_text(text)


if __name__ == "__main__":
    main()
