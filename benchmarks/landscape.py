"""What the prior tells: basins, cells on request, novelty, doublets, order and gene programs.

python benchmarks/landscape.py [--parts basins requests programs novelty order] [--seeds 0 1 2]
                               [--cells N] [--epochs N] [--quick] [--pictures]

By default, requests take all cells of a dataset, and the other parts 3,000.

Appends tidy rows to results/landscape.csv and writes docs/results_landscape.md from it. Rows that
are there already are skipped. --quick: few cells and epochs, one seed, nothing is written.
--pictures: instead, the pictures of docs/landscape.md.
"""

import argparse
import importlib.metadata
import os
import sys
import tempfile
import warnings
from pathlib import Path

if "OMP_NUM_THREADS" in os.environ:  # numba (scanpy) would raise torch's number again
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import numpy as np
import pandas as pd
import scvi
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, spearmanr

sys.path.insert(1, str(Path(__file__).parent / "cells"))
from datasets import DATASETS, Dataset, cells
from tables import markdown

from scqbm import QBMVI, benchmark, data, match_programs

RESULTS = Path(__file__).parent / "results" / "landscape.csv"
PAGE = Path(__file__).parents[1] / "docs" / "results_landscape.md"
KEY = ["part", "dataset", "seed"]
# Donors as batches: the code keeps the stimulation, which `kang` and `kang-donor` mix away.
DATASETS["kang-stimulated"] = Dataset(lambda: data.load("pbmc_kang_ifnb"), "cell_type", "donor")
WHERE = {  # datasets of each part
    "basins": ["simulated", "kang-donor", "pancreas"],
    "requests": ["simulated", "kang-donor", "pancreas"],
    "programs": ["kang-donor", "pancreas", "kang-stimulated"],
    "novelty": ["kang-donor", "pancreas"],
    "order": ["paul15", "simulated-tree"],
}
MOST_CELLS = 3000
ALL_CELLS = {"requests"}  # parts that need a decoder as good as it gets
LEFT_OUT = 4  # cell types, one after the other
INTERFERON = {"ISG15", "IFI6", "IFIT1", "IFIT2", "IFIT3", "MX1"}


def fit(adata, batch, split, epochs, seed):
    """A model with nb, as in the benchmark, and its own number of epochs."""
    scvi.settings.seed = seed
    QBMVI.setup_anndata(adata, batch_key=batch)
    model = QBMVI(adata, gene_likelihood="nb")
    model.train(
        epochs,
        datasplitter_kwargs={"external_indexing": split},
        enable_progress_bar=False,
    )
    return model


def best_leiden(codes, labels):
    """ARI of Leiden clusters of the codes at the best of twelve resolutions."""
    import scanpy as sc
    from anndata import AnnData
    from sklearn.metrics import adjusted_rand_score

    graph = AnnData(codes)
    sc.pp.neighbors(graph, use_rep="X", random_state=0)
    scores = []
    for resolution in np.geomspace(0.05, 2, 12):
        sc.tl.leiden(
            graph, resolution, flavor="igraph", n_iterations=2, directed=False, random_state=0
        )
        scores.append(adjusted_rand_score(labels, graph.obs["leiden"]))
    return max(scores)


def basins(model, its_cells, seed):
    """Basins beside Leiden clusters and labels; barriers beside the truth, where it is known."""
    from sklearn.metrics import adjusted_rand_score

    adata, label = its_cells.adata, its_cells.dataset.label
    labels = adata.obs[label].astype(str).to_numpy()
    found = {}
    for resolution in (0.0, 0.1, 0.3, 1.0):
        landscape = model.get_landscape(resolution=resolution, seed=seed, silent=True)
        basin = adata.obs["basin"].astype(str)
        found[f"basins ARI, resolution {resolution:g}"] = adjusted_rand_score(labels, basin)
        found[f"basins, resolution {resolution:g}"] = landscape.n_obs
    found["Leiden ARI, best resolution"] = best_leiden(model.get_latent_representation(), labels)
    if its_cells.dataset.truth is not None:
        landscape = model.get_landscape(
            resolution=0.0, min_cells=0, seed=seed, labels_key=label, silent=True, key_added=None
        )
        large = landscape[landscape.obs["n_cells"] >= 10]
        truth = pd.DataFrame(adata.obsm[its_cells.dataset.truth] @ adata.varm["programs"].T)
        centres = truth.groupby(labels).mean()
        apart = pd.DataFrame(squareform(pdist(centres)), centres.index, centres.index)
        names = large.obs["label"].astype(str)
        climbs = -np.log(large.obsp["connectivities"].toarray() + np.eye(large.n_obs))
        pairs = [(i, j) for i in range(len(names)) for j in range(i) if names[i] != names[j]]
        found["Spearman of barriers and distances"] = spearmanr(
            [climbs[i, j] for i, j in pairs],
            [apart.loc[names.iloc[i], names.iloc[j]] for i, j in pairs],
        )[0]
    return found


def requests(model, its_cells, seed):
    """Cells that were asked for by type, and the composition where nothing was asked."""
    adata, label = its_cells.adata, its_cells.dataset.label
    table = benchmark.conditional_generation(
        adata, {"QBMVI": model}, its_cells.held_out, label, seed=seed
    )
    found = {f"{r.metric} ({r.group})": r.value for r in table.itertuples()}
    free = benchmark.generation(
        adata, {"QBMVI": model}, its_cells.held_out, label_key=label, seed=seed
    )
    for method in ("QBMVI", "real cells"):
        some = free[(free["method"] == method) & (free["metric"] == "composition")]
        found[f"composition, {method}"] = some["value"].iloc[0]
    return found


def programs(model, its_cells, seed, kept):
    """Effects of the units, and how well the seeds agree; interferon between stim and control."""
    adata = its_cells.adata
    tables = {
        "units": model.get_programs(n_genes=None, silent=True),
        "15 programs": model.get_programs(
            n_programs=15, n_genes=None, key_added="programs", silent=True
        ),
    }
    found = {}
    for what, table in tables.items():
        table.to_csv(kept / f"{what} {seed}.csv", index=False)
        for number in range(seed):
            if not (kept / f"{what} {number}.csv").exists():
                continue
            other = pd.read_csv(kept / f"{what} {number}.csv")
            genes = set(table["target"]) & set(other["target"])  # each seed has its own cells
            similar = match_programs(*(t[t["target"].isin(genes)] for t in (table, other)))[
                "similarity"
            ]
            found[f"{what}: median best match with seed {number}"] = similar.median()
            found[f"{what}: share of matches above 0.7 with seed {number}"] = (
                similar > 0.7
            ).mean()
    if its_cells.dataset.batch == "donor":  # what differs most by stimulation
        stimulated = (adata.obs["condition"] == "STIM").to_numpy()
        codes = pd.DataFrame(model.get_latent_representation()).add_prefix("unit_")
        for what, scores in (("unit", codes), ("program", adata.obsm["programs"])):
            gap = np.abs(scores[stimulated].mean() - scores[~stimulated].mean())
            table = tables["units" if what == "unit" else "15 programs"]
            ranks = []
            for rank, name in enumerate(gap.sort_values(ascending=False).index, 1):
                top = table[table["source"] == name].head(20)
                if len(INTERFERON & set(top["target"])) >= 3:
                    ranks.append(rank)
            found[f"rank of the first interferon {what}"] = min(ranks, default=np.nan)
    return found


def scores_of_cells(model, query, reference, seed):
    """What might tell unusual cells: higher is more unusual."""
    from sklearn.neighbors import NearestNeighbors

    codes = model.get_latent_representation(query)
    near = NearestNeighbors(n_neighbors=15).fit(model.get_latent_representation(indices=reference))
    return {
        "energy": model.get_prior_energy(query, seed=seed),
        "potential (csp)": model.get_prior_energy(query, kind="csp"),
        "reconstruction error": _reconstruction(model, query),
        "log p(x)": -model.get_marginal_ll(
            query, n_mc_samples=50, n_mc_samples_per_pass=10, return_mean=False
        ),
        "distance to the reference": near.kneighbors(codes)[0].mean(1),
    }


def _reconstruction(model, query):
    """Minus log p(x | z) at one draw of each code."""
    import torch

    parts = []
    adata = model._validate_anndata(query)
    for tensors in model._make_data_loader(adata, batch_size=512):
        with torch.inference_mode():
            _, _, loss = model.module(tensors)
        parts.append(loss.dict_sum(loss.reconstruction_loss).numpy())
    return np.concatenate(parts)


def novelty(its_cells, epochs, seed):
    """AUROC of each score among held-out cells: for a type that was left out, and for doublets."""
    from sklearn.metrics import roc_auc_score

    adata, label = its_cells.adata, its_cells.dataset.label
    labels = adata.obs[label].astype(str).to_numpy()
    held_out = its_cells.held_out
    counts = pd.Series(labels[held_out]).value_counts()
    able = counts.index[counts >= 8]
    chosen = np.random.default_rng(seed).permutation(sorted(able))[:LEFT_OUT]
    found = {}
    for one in chosen:
        known = labels != one
        split = [
            np.flatnonzero(np.isin(np.flatnonzero(known), part))
            for part in (its_cells.train, held_out)
        ]
        model = fit(adata[known].copy(), its_cells.dataset.batch, split, epochs, seed)
        scores = scores_of_cells(model, adata[held_out].copy(), split[0], seed)
        new = ~known[held_out]
        for name, score in scores.items():
            found[f"AUROC of {name}: {one} left out"] = roc_auc_score(new, score)
    split = [its_cells.train, held_out]
    model = fit(adata, its_cells.dataset.batch, split, epochs, seed)
    query = _with_doublets(adata[held_out], its_cells.dataset.batch, seed)
    scores = scores_of_cells(model, query, split[0], seed)
    for name, score in scores.items():
        found[f"AUROC of {name}: doublets"] = roc_auc_score(query.obs["doublet"], score)
    return found


def order(model, its_cells, seed):
    """Whether a score of cells rises along the known order, beside the number of genes seen."""
    adata, dataset = its_cells.adata, its_cells.dataset
    scores = scores_of_cells(model, adata, its_cells.train, seed)
    # less differentiated cells express more genes (Gulati 2020)
    scores["few genes"] = -np.asarray((adata.X > 0).sum(1)).ravel()
    known = adata.obs[dataset.order].to_numpy(float)
    branch = adata.obs[dataset.branch].astype(str).to_numpy()
    found = {}
    for name, score in scores.items():
        taus = []
        for one in pd.unique(branch):
            here = (branch == one) & ~np.isnan(known)
            if len(set(known[here])) > 1:
                taus.append(kendalltau(score[here], known[here]).statistic)
        found[f"Kendall of {name}, within branches"] = np.mean(taus)
    return found


def _with_doublets(adata, batch_key, seed):
    """The cells, and half as many sums of two of one batch, thinned to the depth of one cell."""
    rng = np.random.default_rng(seed)
    n = adata.n_obs // 2
    first = rng.permutation(adata.n_obs)[:n]
    batch = adata.obs[batch_key].astype(str).to_numpy()
    second = np.array([rng.choice(np.flatnonzero(batch == batch[i])) for i in first])
    both = (adata.X[first] + adata.X[second]).tocsr()
    both.data = rng.binomial(both.data.astype(np.int64), 0.5).astype(np.float32)
    query = adata[np.concatenate([np.arange(adata.n_obs), first])].copy()
    query.obs_names_make_unique()
    from scipy import sparse

    query.X = sparse.vstack([adata.X, both]).tocsr()
    query.obs["doublet"] = np.arange(query.n_obs) >= adata.n_obs
    return query


def pictures(its_cells, epochs, seed):
    """The pictures of docs/landscape.md."""
    import matplotlib

    matplotlib.use("agg")
    from scqbm import pl

    adata, label = its_cells.adata, its_cells.dataset.label
    split = [its_cells.train, its_cells.held_out]
    model = fit(adata, its_cells.dataset.batch, split, epochs, seed)
    landscape = model.get_landscape(labels_key=label, seed=seed)
    adata.obsm["X_qbmvi"] = model.get_latent_representation()
    model.get_programs(n_programs=15, key_added="programs", silent=True)
    for name, ax in {
        "landscape": pl.landscape(landscape, color="label"),
        "merge_tree": pl.merge_tree(landscape, label="label"),
        "units": pl.units(adata, label),
        "programs": pl.units(adata, label, code_key="programs"),
        "couplings": pl.couplings(model),
        "new_cells": pl.new_cells(adata, model.sample_cells(1000, seed=seed)),
    }.items():
        ax.figure.savefig(PAGE.parent / "_static" / f"{name}.png", dpi=110)


def page(rows):
    """One table a part: means over seeds with their range."""
    versions = rows["versions"].iloc[-1]
    # all pairs of seeds in one line
    rows = rows.assign(metric=rows["metric"].str.replace(r"seed \d+$", "another seed", regex=True))
    # all types that were left out in one line
    rows["metric"] = rows["metric"].str.replace(r": .* left out$", ": a type left out", regex=True)
    texts = [
        "Means over seeds (or pairs of them, or types left out), and the smallest and largest of "
        f"them. {versions}."
    ]
    single = rows["metric"].str.contains(r"\((?!mean)[^)]*\)$")  # of one cell type
    for part, some in rows[~single | (rows["part"] == "novelty")].groupby("part", sort=False):
        table = []
        grouped = some.groupby(["metric", "dataset"], sort=False)["value"]
        names = list(dict.fromkeys(some["dataset"]))
        for metric in dict.fromkeys(some["metric"]):
            row = {"": metric}
            for name in names:
                key = (metric, name)
                if key not in grouped.groups:
                    row[name] = ""
                    continue
                values = grouped.get_group(key)
                text = f"{values.mean():.3g}"
                if len(values) > 1:
                    text += f" ({values.min():.3g} to {values.max():.3g})"
                row[name] = text
            table.append(row)
        texts.append(f"### {part.capitalize()}")
        texts.append(markdown(table))
    return "\n\n".join(texts) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(WHERE), default=list(WHERE))
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cells", type=int)
    parser.add_argument("--epochs", type=int, help="default: those of QBMVI")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pictures", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.cells, args.epochs, args.seeds = 800, 10, [0]
    if args.pictures:
        pictures(
            cells("kang-donor", args.cells or MOST_CELLS, args.seeds[0]),
            args.epochs,
            args.seeds[0],
        )
        return
    rows = pd.read_csv(RESULTS) if RESULTS.exists() and not args.quick else pd.DataFrame()
    kept = Path(tempfile.mkdtemp() if args.quick else tempfile.gettempdir()) / "scqbm_programs"
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("scqbm", "scvi-tools", "torch")
    )
    for seed in args.seeds:
        for name in args.datasets or dict.fromkeys(n for p in args.parts for n in WHERE[p]):
            done = set()
            if len(rows):
                done = set(rows[(rows["dataset"] == name) & (rows["seed"] == seed)]["part"])
            todo = [p for p in args.parts if name in WHERE[p] and p not in done]
            for n_cells, its_parts in with_cells(todo, args.cells).items():
                try:
                    its_cells = cells(name, n_cells, seed)
                except OSError as error:  # no such file
                    print(f"{name} is left out: {error}", flush=True)
                    break
                found = measured(its_cells, its_parts, args.epochs, seed, kept / name)
                for part, its in found:
                    new = pd.DataFrame(
                        {
                            "part": part,
                            "dataset": name,
                            "seed": seed,
                            "metric": list(its),
                            "value": list(its.values()),
                            "cells": its_cells.adata.n_obs,
                            "versions": versions,
                        }
                    )
                    print(new[[*KEY, "metric", "value"]].to_string(index=False), flush=True)
                    rows = pd.concat([rows, new], ignore_index=True)
                    if not args.quick:
                        rows.to_csv(RESULTS, index=False)
                        PAGE.write_text(page(rows))


def with_cells(parts, n_cells):
    """Parts by the number of cells that they take, where ``None`` is all."""
    groups = {}
    for part in parts:
        many = None if part in ALL_CELLS else MOST_CELLS
        groups.setdefault(n_cells or many, []).append(part)
    return groups


def measured(its_cells, parts, epochs, seed, kept):
    """Each part and what it found, one after the other, from the same model where it can be."""
    if set(parts) - {"novelty"}:
        split = [its_cells.train, its_cells.held_out]
        model = fit(its_cells.adata, its_cells.dataset.batch, split, epochs, seed)
    for part in parts:
        if part == "novelty":
            yield part, novelty(its_cells, epochs, seed)
        elif part == "programs":
            kept.mkdir(parents=True, exist_ok=True)
            yield part, programs(model, its_cells, seed, kept)
        else:
            its = {"basins": basins, "requests": requests, "order": order}[part]
            yield part, its(model, its_cells, seed)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
