"""Write docs/results_shifts.md and its picture from results/shifts.csv (`run.py --shifted`).

python benchmarks/cells/shifted.py
"""

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(1, str(Path(__file__).parents[1]))  # before any package of the same name
from tables import markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/shifts.csv"
METHODS = {"PCA": "o", "Harmony": "s", "SCVI-30": "^", "SCVI-30+": "v", "QBMVI": "*"}
METHODS |= {"CONCORD": "D"}
FIRST_SEED_ONLY = ["CONCORD"]
METRICS = {  # (group, metric): heading, digits, sign of better
    ("aggregate", "Total"): ("Total", 3, 1),
    ("across", "macro-F1"): ("Macro-F1 in unseen batches", 3, 1),
    ("across", "partial macro-F1"): ("The same, types that some batch lacks", 3, 1),
    ("within", "macro-F1"): ("Macro-F1 in 5 folds", 3, 1),
    ("pseudotime", "Kendall within branches"): ("Kendall's tau within branches", 3, 1),
    ("within labels", "batch probe"): ("Batch probe within types (lower is better)", 3, -1),
    ("within batches", "neighbours kept"): ("Neighbours kept within batches", 3, 1),
}


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """One figure of each method and dataset: the mean over the seeds that all methods have.

    Those of FIRST_SEED_ONLY need not have them.
    """
    needed = rows[~rows["method"].isin(FIRST_SEED_ONLY)]
    n_methods = needed.groupby(["dataset", "seed"])["method"].nunique()
    full = n_methods == n_methods.groupby("dataset").transform("max")
    rows = rows[full.loc[pd.MultiIndex.from_frame(rows[["dataset", "seed"]])].to_numpy()]
    keys = ["dataset", "method", "group", "metric"]
    return rows.groupby(keys)["value"].mean().reset_index()


def tables(best: pd.DataFrame) -> str:
    """One table for each metric, with the mean over datasets."""
    texts = []
    for (group, metric), (heading, digits, sign) in METRICS.items():
        some = best[(best["group"] == group) & (best["metric"] == metric)]
        wide = some.pivot(index="dataset", columns="method", values="value")
        wide = wide[[name for name in METHODS if name in wide]]
        wide.loc["mean"] = wide.dropna(axis=1, how="all").mean()
        rows = []
        for name, values in wide.iterrows():
            top = (values * sign).max()
            row = {"dataset": name}
            for method, value in values.items():
                text = "" if pd.isna(value) else f"{value:.{digits}f}"
                row[method] = f"**{text}**" if text and value * sign == top else text
            rows.append(row)
        texts.append(f"### {heading}\n\n{markdown(rows)}")
    return "\n\n".join(texts)


def picture(best: pd.DataFrame, path: Path) -> None:
    """Mixing on one axis and biology on the other, so that a trade-off shows."""
    import matplotlib.pyplot as plt

    wide = best.set_index(["dataset", "method", "group", "metric"])["value"]
    names = list(dict.fromkeys(best["dataset"]))
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.2), layout="constrained")
    for ax, name in zip(axes.flat, names, strict=False):
        for method, marker in METHODS.items():
            try:
                x = wide[name, method, "within labels", "batch probe"]
                y = wide[name, method, "across", "macro-F1"]
            except KeyError:
                continue
            size = 190 if method == "QBMVI" else 70
            ax.scatter(x, y, marker=marker, s=size, label=method)
        ax.set_title(name, fontsize=10)
        ax.invert_xaxis()
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    figure.supxlabel("batch probe within cell types (further right: better mixed)")
    figure.supylabel("macro-F1 in unseen batches")
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(METHODS)
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    rows = pd.read_csv(RESULTS)
    best = means(rows)
    runs = pd.read_csv(RESULTS.with_name("shifts_runs.csv"))
    runs = runs[runs["method"] == "QBMVI"].iloc[-1]  # the others may be of an earlier version
    first = ", ".join(FIRST_SEED_ONLY)
    note = (
        f"Epochs: {runs['epochs']}. Seeds: up to {rows['seed'].nunique()}, all methods the same "
    )
    note += f"ones ({first}: the first only). {runs['versions']}"
    text = f"{tables(best)}\n\n{note.replace('{', '').replace('}', '').replace(chr(34), '')}\n"
    (ROOT / "docs/results_shifts.md").write_text(text)
    picture(best, ROOT / "docs/_static/shifts.png")


if __name__ == "__main__":
    main()
