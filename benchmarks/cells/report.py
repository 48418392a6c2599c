"""Write docs/benchmark.md and its figure from results/benchmark.csv: wins and losses alike.

python benchmarks/cells/report.py [--results FILE] [--docs FOLDER]

Also writes docs/results_parts.md, what each part of the model is worth, from results/parts.csv:

python benchmarks/cells/run.py --cells 1500 --epochs 100 --seeds 0 1 --datasets pancreas kang-donor
    --tasks integration likelihood classification generation --out benchmarks/results/parts.csv
    --methods QBMVI SCVI-30 SCVI-30+ QBMVI-unmixed QBMVI-uncoupled QBMVI-frozen QBMVI-no-bonus
    QBMVI-no-dropouts QBMVI-constant-rate
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from legend import DATASET_MEANINGS, METHOD_MEANINGS
from methods import ABLATIONS, CONTROLS, HALVES, OURS, RIVALS
from standings import (
    ACROSS,
    FIGURE,
    GENERATION,
    INTEGRATION,
    NEGATIVE_ELBO,
    OUR_DEFAULT,
    PARTS,
    QUESTIONS,
    Question,
    by_seed,
    leads,
    means,
    of_question,
    read,
    with_error,
)

sys.path.insert(1, str(Path(__file__).parents[1]))  # before any package of the same name
from tables import markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/benchmark.csv"
PARTS_WORTH = ROOT / "benchmarks/results/parts.csv"
CONTROL = "SCVI-30+"  # has all that we have but the prior; no method that anybody released
SHORTFALLS = Path(__file__).with_name("shortfalls.md")  # of RESULTS: tried, and why it fails


def compared(runs: pd.DataFrame, question: Question) -> tuple[pd.DataFrame, str]:
    """The table with our lead on the best rival of each dataset, and one line on all of them."""
    wide = runs.groupby("dataset").mean()
    shown = wide[[m for m in [*CONTROLS, *RIVALS, *OURS, "QBMVI-halves"] if m in wide]]
    table = shown.map(lambda v: "" if np.isnan(v) else f"{v:.{question.digits}f}")
    ours = leads(runs, question)
    if ours.empty:
        return table, ""
    table["lead"] = ours.apply(with_error, axis=1, digits=question.digits)
    table["lead"] = table["lead"].fillna("")
    signed = (wide * question.sign).loc[ours.index]
    everywhere = [m for m in question.rivals if m in signed and signed[m].notna().all()]
    if not everywhere:
        return table, ""
    best = signed[everywhere].mean().idxmax()
    gap = (signed[OUR_DEFAULT] - signed[best]).mean()
    datasets = "1 dataset" if len(ours) == 1 else f"{len(ours)} datasets"
    line = (
        f"On average over {datasets}, the lead of {OUR_DEFAULT} over {best}, the rival that is "
        f"best on average, is {gap:+.{question.digits}f} (positive: {OUR_DEFAULT} is better). "
        f"Compared with the best rival of each dataset, {OUR_DEFAULT} is ahead on "
        f"{(ours['gap'] > 0).sum()} of {datasets}. Its smallest lead is on "
        f"{ours['gap'].idxmin()}, {ours['gap'].min():+.{question.digits}f}."
    )
    return table, line


def as_markdown(table: pd.DataFrame) -> str:
    """With the lead first: wide tables scroll, and it is what one looks for."""
    first = [c for c in table if c == "lead"]
    table = table[[*first, *(c for c in table if c != "lead")]]
    return markdown([{"dataset": name} | row.to_dict() for name, row in table.iterrows()])


def folded(title: str, *texts: str) -> str:
    """Texts that a reader opens."""
    inside = "\n\n".join(text for text in texts if text)
    return f"::::{{dropdown}} {title}\n:class-body: figures\n\n{inside}\n\n::::"


def summary(rows: pd.DataFrame) -> str:
    """One line a dataset: Total, our leads in it, and those in three other scores."""
    others = {
        "macro-F1, unseen batches": ACROSS,
        "likelihood, nats": NEGATIVE_ELBO,
        "new cells": GENERATION,
    }
    total = by_seed(rows, INTEGRATION[0], "all")
    released = leads(total.drop(columns=CONTROL, errors="ignore"), INTEGRATION[0])
    control = leads(total, replace(INTEGRATION[0], rivals=(CONTROL,)))
    more = {name: leads(by_seed(rows, q, "all"), q) for name, q in others.items()}
    lines = []
    for dataset, lead in released.iterrows():
        line = {"dataset": dataset, "QBMVI": f"{lead['ours']:.3f}"}
        line["lead, released methods"] = f"**{with_error(lead, 3)}**"
        if dataset in control.index:
            line[f"lead, {CONTROL}"] = f"**{with_error(control.loc[dataset], 3)}**"
        for name, question in others.items():
            known = dataset in more[name].index
            digits = question.digits
            line[name] = with_error(more[name].loc[dataset], digits) if known else ""
        lines.append(line)
    return markdown(lines)


def behind_rivals(rows: pd.DataFrame) -> str:
    """Every score and dataset where a rival is better than we are, all cells."""
    lines = []
    for question in QUESTIONS:
        table = leads(by_seed(rows, question, "all"), question)
        lost = table[table["gap"] < 0].sort_values("gap")
        if len(lost):
            cases = "; ".join(
                f"{name} ({with_error(lead, question.digits)}, {lead['rival']})"
                for name, lead in lost.iterrows()
            )
            lines.append(f"- **{question.title}**: {cases}")
    return "\n".join(lines)


def definitions(names: dict[str, str], shown: set[str]) -> str:
    """A list of names and what they mean."""
    return "\n\n".join(f"{name}\n: {text}." for name, text in names.items() if name in shown)


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
    seen = [name for name in METHOD_MEANINGS if name in set(few["method"])]
    parts.append("\n".join(f"- *{name}*: {METHOD_MEANINGS[name]}" for name in seen))
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
    methods = set(rows.loc[rows["method"].isin([*CONTROLS, *RIVALS, OUR_DEFAULT]), "method"])
    text = [
        "# Benchmark",
        "QBMVI at its default settings, beside scVI, Harmony and principal components. In short: "
        "Total is higher than that of released methods and about as high as that of scVI with our "
        "penalty; the held-out likelihood is better, and cell types are predicted a little better "
        "than by scVI with 30 latents; Leiden clusters, and pseudotime on a simulated tree, are "
        "worse.",
        "![Total and macro-F1 by dataset](_static/benchmark.png)",
        "## Summary",
        "*Total* is that of scib-metrics: 0.4 of batch correction and 0.6 of bio conservation. A "
        "*lead* is QBMVI minus a rival, with its standard error over seeds; positive: QBMVI is "
        "better. *Released methods*: scVI with 10 or 30 latents and one or two layers, Harmony "
        f"and principal components, of which the best on the dataset counts. *{CONTROL}*: "
        "scVI with our batch-mixing penalty, dropouts and schedule. The last three columns "
        "are leads over the best of all of them in that score.",
        f":::{{div}} figures\n{summary(rows)}\n:::",
        "The lead in Total comes from the batch-mixing penalty and not from the prior: "
        "[what each part is worth](model.md#what-each-part-is-worth).",
        "### Where QBMVI is behind",
        "All scores and datasets where the best rival is better, with the lead (negative) and the "
        "rival:",
        behind_rivals(rows),
        "### The methods",
        definitions(METHOD_MEANINGS, methods),
        "### The data",
        definitions(DATASET_MEANINGS, set(rows["dataset"])),
        "### How to read the tables",
        f"Each figure is a mean over up to {seeds} seeds, and each seed has its own split into "
        "training and held-out cells. Only QBMVI's rows of 1,500 cells and its ablations are "
        "older: they have the mixing penalty of commit 80e369f, which compared whole batches "
        "only. scVI and similar "
        "rivals were trained with two learning rates, and each table shows, for each dataset, the "
        "rate with the better result there. (Both rates were tried on the first seed. The rate "
        "with the best Total and the rate with the best ELBO were then also used on the other "
        "seeds.) *Two-sample accuracy* is how often a classifier tells new cells from "
        "held-out real ones; 0.5 is chance.",
        "`python benchmarks/cells/report.py` writes this page from "
        "`benchmarks/results/benchmark.csv`, which `python benchmarks/cells/run.py` writes.",
    ]
    subsets = sorted(set(rows["cells"]), key=lambda c: c != "all")
    for cells in subsets:
        text.append("## All cells" if cells == "all" else f"## Random subsets of {cells} cells")
        for question in QUESTIONS:
            runs_of = by_seed(rows, question, cells)
            if len(runs_of):
                table, line = compared(runs_of, question)
                text.append(folded(question.title, as_markdown(table), line))
        last_parts = (
            ("Ablations, and rivals with fewer seeds", parts(rows, cells)),
            ("Prior energy and the order of the cells", energy(rows, cells)),
        )
        text += [folded(title, part) for title, part in last_parts if part]
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


def worth(rows: pd.DataFrame) -> str:
    """How the scores of QBMVI change without each of its parts, and those of scVI, on average."""
    questions = {
        "Total": INTEGRATION[0],
        "bio": INTEGRATION[2],
        "F1 across": ACROSS,
        "nats": NEGATIVE_ELBO,
        "new cells": GENERATION,
    }
    cells = rows["cells"].iloc[0]
    methods = [m for m in [*OURS, *ABLATIONS, *HALVES, *RIVALS] if m in set(rows["method"])]
    lines = []
    for method in methods:
        if method == OUR_DEFAULT:
            continue
        pairs = [
            rows.loc[rows["method"] == name, ["dataset", "seed"]].drop_duplicates()
            for name in (method, OUR_DEFAULT)
        ]
        its = pairs[0].merge(pairs[1])
        both = rows[rows["method"].isin([method, OUR_DEFAULT])].merge(its)  # its seeds only
        line = {"": f"{method}: {METHOD_MEANINGS[method]}"}
        for name, question in questions.items():
            wide = by_seed(both, question, cells) * question.sign
            if method not in wide:  # this score does not apply, or was not asked for
                line[name] = ""
                continue
            change = (wide[method] - wide[OUR_DEFAULT]).groupby("dataset").mean().mean()
            line[name] = f"{change:+.{question.digits}f}"
        line["seeds"] = its["seed"].nunique()
        lines.append(line)
    datasets = sorted(set(rows["dataset"]))
    note = (
        f"{cells} cells each of {' and '.join(datasets)}, 100 epochs. Change of each score, on "
        "average over both and over the seeds; in all columns, positive is better than QBMVI. "
        "*bio*: bio conservation; *F1 across*: macro-F1 in unseen batches; *nats*: held-out "
        "likelihood; *new cells*: how much harder they are to tell from real ones."
    )
    return f"{markdown(lines)}\n\n{note}\n"


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
    if ours and PARTS_WORTH.exists():
        (args.docs / "results_parts.md").write_text(worth(read(PARTS_WORTH)))


if __name__ == "__main__":
    main()
