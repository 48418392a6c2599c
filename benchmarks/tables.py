"""Write the tables of docs/results.md from benchmarks/results/*.csv.

python benchmarks/tables.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from quality import summary

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
FAMILIES = {"QBMVI-unmixed": "bits, plain ELBO", "QBMVI": "bits", "QBMVI-normal": "normal"}
SOURCES = {"minutes": "quality"}  # tables of another results file
WORDS = {  # what a page calls the columns of a results file
    "ratio": "time per epoch, QBMVI / SCVI",
}


def markdown(rows: list[dict]) -> str:
    """A Markdown table of rows with the same keys."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])


def elbo() -> str:
    """Mean and spread over seeds, and each family minus SCVI's best width, seed by seed."""
    runs = pd.read_csv(RESULTS / "elbo.csv")
    wide = runs.pivot_table(index=["dataset", "seed"], columns="method", values="negative_elbo")
    rows = []
    for name, cells in wide.groupby(level=0):
        rivals = cells[["SCVI-10", "SCVI-30"]]
        row = {"dataset": name}
        row |= {m: f"{cells[m].mean():.1f} ± {cells[m].std():.1f}" for m in cells}
        for method, family in FAMILIES.items():
            if method not in cells:
                continue
            of_means = cells[method].mean() - rivals.mean().min()
            by_seed = ", ".join(f"{d:+.1f}" for d in cells[method] - rivals.min(axis=1))
            row[f"{family} minus best SCVI: of means (by seed)"] = f"{of_means:+.1f} ({by_seed})"
        rows.append(row)
    first = runs.iloc[0]
    epochs = ", ".join(f"{k} {v}" for k, v in runs.groupby("dataset")["epochs"].first().items())
    note = (
        "Nats per held-out cell, lower is better: mean ± standard deviation over "
        f"{runs['seed'].nunique()} seeds, each with its own split. The largest standard error of "
        f"log Z is {runs['log_z_error'].max():.2f}. Epochs: {epochs}; plan {first['plan']}; "
        f"scvi-tools {first['scvi-tools']}, torch {first['torch']}."
    )
    return f"{markdown(rows)}\n\n{note}"


def plain(name: str) -> str:
    """A results file as it is, turned on its side if it has one row."""
    table = pd.read_csv(RESULTS / f"{name}.csv").rename(columns=WORDS)
    if len(table) > 1:
        return markdown(table.astype(str).to_dict("records"))
    return markdown([{"quantity": key, "value": value} for key, value in table.iloc[0].items()])


def sampler_speed() -> str:
    """Ratios and their targets."""
    table = pd.read_csv(RESULTS / "samplers_speed.csv").fillna("")
    table["what"] = (
        table["what"]
        .str.replace("over its products", "/ its matrix products")
        .str.replace(" over Gibbs, time of 100 sweeps", " / Gibbs, time of 100 sweeps")
    )
    rows = table[["what", "size", "ratio", "target", "error", "error_gibbs"]].astype(str)
    return markdown(rows.rename(columns={"error_gibbs": "error of Gibbs"}).to_dict("records"))


def qpu_overhead() -> str:
    """Milliseconds per query, its parts, and the ratio."""
    table = pd.read_csv(RESULTS / "qpu_overhead.csv")
    value = (
        table["milliseconds"]
        .map("{:.2f} ms".format)
        .where(table["ratio"].isna(), table["ratio"].map("{:.1f} x".format))
    )
    wide = table.assign(value=value).pivot(index="what", columns="units", values="value")
    wide = wide.loc[table["what"].unique()].reset_index()
    return markdown(wide.to_dict("records"))


def sampler_training() -> str:
    """Each sampler minus the exact one, seed by seed."""
    table = pd.read_csv(RESULTS / "sampler_training.csv")
    wide = table.pivot(index="seed", columns="sampler", values="negative_elbo")
    rows = []
    for name in table["sampler"].unique():
        off = wide[name] - wide["Exact, native" if "native" in name else "Exact"]
        error = off.std() / len(off) ** 0.5
        row = {"sampler": name, "negative ELBO": f"{wide[name].mean():.2f}"}
        rows.append(row | {"minus exact": f"{off.mean():+.2f} ± {error:.2f}"})
    return f"{markdown(rows)}\n\nMean over {len(wide)} seeds, and its standard error."


def transverse() -> str:
    """Error of the first moments of each sampler at each transverse field."""
    table = pd.read_csv(RESULTS / "transverse.csv")
    rows = []
    for name, some in table.groupby("sampler", sort=False):
        row = {"sampler": name}
        rows.append(row | {f"field {r.field:g}": f"{r.error_1:.3f}" for r in some.itertuples()})
    floor = table.groupby("field")["floor_1"].mean()
    row = {"sampler": "as many independent draws"}
    rows.append(row | {f"field {field:g}": f"{error:.3f}" for field, error in floor.items()})
    return markdown(rows)


def speed() -> str:
    """Ratio of the time per epoch, with the range of the pairs; one column for each data set."""
    table = pd.read_csv(RESULTS / "speed.csv")
    table = table[table["code"] == "now"]
    words = {"default": "the default of each"}
    rows = []
    for (machine, threads, likelihood, width), rows_of in table.groupby(
        ["machine", "threads", "gene_likelihood", "n_latent"], sort=False
    ):
        row = {"machine": machine, "threads": threads, "likelihood": likelihood}
        row["latents"] = words.get(width, width)
        for _, one in rows_of.iterrows():
            row[f"{one['zeros']:.0%} zeros"] = (
                f"{one['ratio']:.2f} ({one['lowest']:.2f} to {one['highest']:.2f})"
            )
        rows.append(row)
    wide = pd.DataFrame(rows).fillna("")
    return f"{markdown(wide.to_dict('records'))}\n\n{versions(table)}"


def speed_steps() -> str:
    """Parts of a step in units of SCVI's step: before, now, and SCVI."""
    table = pd.read_csv(RESULTS / "speed_steps.csv")
    table = table[table["zeros"] == table["zeros"].max()]  # as in real data
    columns = {("SCVI", "now"): "SCVI", ("QBMVI", "before"): "QBMVI before"}
    columns[("QBMVI", "now")] = "QBMVI now"
    parts = list(table.loc[:, "minibatch":"the rest"])
    texts = []
    for (likelihood, threads), some in table.groupby(["gene_likelihood", "threads"], sort=False):
        found = {
            name: some[(some["model"] == model) & (some["code"] == code)].iloc[0]
            for (model, code), name in columns.items()
            if len(some[(some["model"] == model) & (some["code"] == code)])
        }
        rows = [
            {"part of a step": part} | {name: f"{one[part]:.2f}" for name, one in found.items()}
            for part in parts
        ]
        total = {name: f"{one[parts].sum():.2f}" for name, one in found.items()}
        rows.append({"part of a step": "all"} | total)
        texts.append(f"{likelihood}, threads: {threads}\n\n{markdown(rows)}")
    return "\n\n".join(texts)


def quality() -> str:
    """When QBMVI passes SCVI's final held-out ELBO."""
    curves = pd.read_csv(RESULTS / "quality.csv")
    return f"{markdown(summary(curves).round(2).to_dict('records'))}\n\n{versions(curves)}"


def minutes() -> str:
    """Whole trainings of the runs of ``quality``."""
    curves = pd.read_csv(RESULTS / "quality.csv")
    runs = ["dataset", "cells", "method", "lr", "epochs"]
    ends = curves.groupby(runs, sort=False)["whole"].first().reset_index()
    rows = []
    for (name, n_cells), some in ends.groupby(["dataset", "cells"], sort=False):
        row = {"dataset": name, "cells": n_cells}
        for method in ("QBMVI", "SCVI"):  # SCVI at its own rate
            one = some[some["method"] == method].iloc[0]
            row[f"epochs, {method}"] = one["epochs"]
            row[f"minutes, {method}"] = f"{one['whole'] / 60:.1f}"
        rows.append(row)
    return f"{markdown(rows)}\n\n{versions(curves)}"


def scale() -> str:
    """Both models by number of cells, machine by machine."""
    every = pd.read_csv(RESULTS / "scale.csv")
    columns = ["cells", "model", "cells a second", "step, ms", "peak GB"]
    settings = {"n_latent": "units of the code", "precision": "precision"}
    texts = []
    for _, table in every.groupby("machine", sort=False):
        differ = [name for name in settings if table[name].nunique() > 1]
        shown = table[["cells", *differ, *columns[1:]]].rename(columns=settings)
        first = table.iloc[0]
        note = (
            f"{first['source']} cells drawn anew, {first['zeros']:.0%} zeros, "
            f"{first['steps']:.0f} to {table['steps'].max():.0f} steps, "
            f"{first['gene_likelihood']}, {first['machine']}. "
        )
        texts.append(f"{markdown(shown.to_dict('records'))}\n\n{note}{versions(table)}")
    return "\n\n".join(texts)


def long_run() -> str:
    """Each run at some of its steps."""
    table = pd.read_csv(RESULTS / "long_run.csv")
    columns = {
        "steps": "steps",
        "precision": "precision",
        "negative_elbo": "held-out -ELBO",
        "largest_coupling": "largest coupling",
        "coupling_std": "sd of the couplings",
        "prior_gap": "energy gap, nats",
        "prior_memory": "memory of the chains",
    }
    texts = []
    for _, run in table.groupby("precision", sort=False):
        wanted = np.linspace(run["steps"].min(), run["steps"].max(), 6)
        picked = [(run["steps"] - step).abs().idxmin() for step in wanted]
        shown = run.loc[picked, list(columns)].rename(columns=columns).round(3)
        texts.append(markdown(shown.to_dict("records")))
        last = run.iloc[-1]
        texts.append(
            f"All weights finite: {bool(run['finite'].all())}. Error of the moments of the chains "
            f"at the end: {last['moment_error']:.4f}; of as many independent draws: "
            f"{last['iid_floor']:.4f}. {last['dataset']}, {last['genes']} genes; torch "
            f"{last['torch']}, scvi-tools {last['scvi-tools']}, Python {last['python']}."
        )
    return "\n\n".join(texts)


def versions(table: pd.DataFrame) -> str:
    """Threads and versions of a results file."""
    first = table.iloc[0]
    threads = ", ".join(map(str, table["threads"].unique()))
    return (
        f"Threads: {threads}; torch {first['torch']}, scvi-tools {first['scvi-tools']}, "
        f"Python {first['python']}."
    )


def main() -> None:
    """One included file for each results file."""
    for name, text in {
        "elbo": elbo,
        "long_run": long_run,
        "speed": speed,
        "speed_steps": speed_steps,
        "quality": quality,
        "minutes": minutes,
        "scale": scale,
        "samplers_speed": sampler_speed,
        "qpu_overhead": qpu_overhead,
        "sampler_training": sampler_training,
        "transverse": transverse,
    }.items():
        if (RESULTS / f"{SOURCES.get(name, name)}.csv").exists():
            (DOCS / f"results_{name}.md").write_text(text() + "\n")


if __name__ == "__main__":
    main()
