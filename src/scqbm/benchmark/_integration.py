"""Integration: all metrics of scib-metrics, and Leiden clusters against the labels."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scqbm.benchmark._inputs import as_arrays, chosen_cells, pca

# scib-metrics' names: of the metric, then of the figures that it gives
METRICS = {
    "bio": {
        "isolated_labels": ("Isolated labels",),
        "nmi_ari_cluster_labels_kmeans": ("KMeans NMI", "KMeans ARI"),
        "silhouette_label": ("Silhouette label",),
        "clisi_knn": ("cLISI",),
    },
    "batch": {
        "bras": ("BRAS",),
        "ilisi_knn": ("iLISI",),
        "kbet_per_label": ("KBET",),
        "graph_connectivity": ("Graph connectivity",),
        "pcr_comparison": ("PCR comparison",),
    },
}
WEIGHTS = {"batch": 0.4, "bio": 0.6}  # of the Total, as in scIB
RESOLUTIONS = tuple(np.round(np.arange(0.2, 2.01, 0.2), 1))  # scib-metrics' own
N_NEIGHBORS = 90  # the most that a metric (LISI) asks for


def integration(
    adata: AnnData,
    batch_key: str | None,
    label_key: str,
    embeddings: Mapping[str, Any],
    *,
    pre_integrated: str | np.ndarray | None = None,
    max_cells: int | None = 20_000,
    leiden: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """How well embeddings mix batches and keep cell types apart, by scib-metrics.

    All default metrics of ``scib_metrics.benchmark.Benchmarker``, not rescaled between
    embeddings, with its averages: batch correction, bio conservation and Total (.4 and .6). On
    top, agreement of Leiden clusters with the labels.

    Parameters
    ----------
    adata
        Counts or log-normalised values in ``X``.
    batch_key
        Column of ``adata.obs`` with the batches; ``None`` leaves the batch metrics out.
    label_key
        Column of ``adata.obs`` with the cell types.
    embeddings
        From a name to an array, a key of ``adata.obsm`` or a model with
        ``get_latent_representation``.
    pre_integrated
        Embedding before integration, which PCR compares with: key of ``adata.obsm`` or array. By
        default 50 principal components of the log-normalised ``X``.
    max_cells
        Larger data are scored on a random subset of this size, stratified by batch and label:
        memory and time grow with the square of the cells. ``None`` uses all.
    leiden
        Whether to cluster.
    seed
        Seed of the subset and the clustering.

    Returns
    -------
    Tidy table with the columns ``method``, ``group``, ``metric`` and ``value``. Groups:
    ``"bio"`` and ``"batch"`` (scib-metrics), ``"aggregate"`` (their means and the Total) and
    ``"leiden"`` (ARI, AMI, NMI, homogeneity and FMI at the resolution of the best NMI).

    Notes
    -----
    A metric that fails or is not defined, such as kBET where every label is in one batch, is NaN
    and a warning says so. It is then left out of the averages of *all* embeddings, which would
    not be comparable otherwise. Neighbours are exact. Cells without a batch or label are left out.
    """
    arrays = as_arrays(adata, embeddings)
    keep, columns = chosen_cells(adata, batch_key, label_key, max_cells, seed)
    obs = pd.DataFrame(columns)
    for name, values in obs.items():
        if values.nunique() < 2:
            raise ValueError(f"`{name}_key` must name at least two groups among the cells.")
    if len(obs) <= N_NEIGHBORS:
        raise ValueError(f"`adata` must have more than {N_NEIGHBORS} cells, not {len(obs)}.")
    if batch_key is None:
        obs["batch"] = "none"
        before = None
    elif pre_integrated is None:
        before = pca(adata.X[keep])
    else:
        before = as_arrays(adata, {"pre_integrated": pre_integrated})["pre_integrated"][keep]

    rows = []
    with _quick_garbage_collection():
        for name, array in arrays.items():
            for row in _one(array[keep], before, obs, leiden, seed):
                rows.append({"method": name} | row)
    table = pd.DataFrame(rows)
    return pd.concat([table, aggregates(table)], ignore_index=True)


def aggregates(table: pd.DataFrame) -> pd.DataFrame:
    """Averages, as scIB takes them, over the metrics that every method of ``table`` has.

    Parameters
    ----------
    table
        Rows of the groups ``"bio"`` and ``"batch"`` with the columns of :func:`integration`.

    Returns
    -------
    Rows of the group ``"aggregate"``.
    """
    means = {}
    for group in ("batch", "bio"):
        wide = table[table["group"] == group].pivot(
            index="method", columns="metric", values="value"
        )
        undefined = wide.columns[wide.isna().any()]
        if len(undefined):
            which = {m: list(wide.index[wide[m].isna()]) for m in undefined}
            warnings.warn(
                f"Left out of the averages of all embeddings, being undefined for some: {which}.",
                stacklevel=3,
            )
        wide = wide.drop(columns=undefined)
        if wide.shape[1]:
            means[group] = wide.mean(axis=1)
    scores = pd.DataFrame(means).rename(
        columns={"batch": "Batch correction", "bio": "Bio conservation"}
    )
    if len(means) == 2:
        scores["Total"] = sum(WEIGHTS[group] * mean for group, mean in means.items())
    long = scores.rename_axis("method").reset_index().melt("method", var_name="metric")
    order = list(dict.fromkeys(table["method"]))
    long = long.sort_values("method", key=lambda m: m.map(order.index), kind="stable")
    return long.assign(group="aggregate")[["method", "group", "metric", "value"]]


def _one(array, before, obs, leiden, seed) -> list[dict]:
    """All metrics of one embedding."""
    neighbours = exact_neighbours(array, N_NEIGHBORS)
    groups = dict(METRICS)
    if before is None:  # isolated labels are those in the fewest batches
        groups = {"bio": {k: v for k, v in METRICS["bio"].items() if k != "isolated_labels"}}
    rows = []
    for group, metrics in groups.items():
        for metric, names in metrics.items():
            values = _scib(metric, group, array, before, obs, neighbours, names)
            rows += [
                {"group": group, "metric": name, "value": value}
                for name, value in zip(names, values, strict=True)
            ]
    if leiden:
        graph = neighbours.subset_neighbors(15).knn_graph_connectivities
        rows += [
            {"group": "leiden", "metric": name, "value": value}
            for name, value in leiden_agreement(graph, obs["label"].to_numpy(), seed).items()
        ]
    return rows


def _scib(metric, group, array, before, obs, neighbours, names) -> list[float]:
    """One metric by ``Benchmarker``, alone so that its failure does not take the others along."""
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    kinds = {"bio": BioConservation, "batch": BatchCorrection}
    kind = kinds[group]
    only = kind(**{field.name: field.name == metric for field in fields(kind)})
    cells = AnnData(obs=obs.set_index(obs.index.astype(str)), obsm={"embedding": array})
    cells.obsm["before"] = array if before is None else before
    benchmarker = Benchmarker(
        cells,
        batch_key="batch",
        label_key="label",
        embedding_obsm_keys=["embedding"],
        bio_conservation_metrics=only if group == "bio" else None,
        batch_correction_metrics=only if group == "batch" else None,
        pre_integrated_embedding_obsm_key="before",
        progress_bar=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Mean of empty slice": reported as NaN instead
            benchmarker.prepare(lambda _, n: neighbours.subset_neighbors(n))
            benchmarker.benchmark()
            values = benchmarker.get_results(min_max_scale=False).loc["embedding"]
        return [float(values[name]) for name in names]
    except Exception as error:  # whatever it is, the other metrics still count
        warnings.warn(f"scib-metrics could not compute {metric}: {error!r}.", stacklevel=4)
        return [np.nan] * len(names)


def exact_neighbours(array: np.ndarray, n_neighbors: int):
    """The nearest neighbours of each cell, itself included, as scib-metrics takes them.

    Exact, hence the same everywhere: the approximate default may return fewer than asked for.
    """
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    # asked without a query a point is not its own neighbour, so duplicates cannot displace it
    finder = NearestNeighbors(n_neighbors=n_neighbors - 1, algorithm="brute").fit(array)
    distances, indices = finder.kneighbors()
    own = np.arange(len(array))[:, None]
    return NeighborsResults(
        indices=np.hstack([own, indices]), distances=np.hstack([0.0 * own, distances])
    )


def leiden_agreement(graph, labels: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Agreement of Leiden clusters with the labels at the resolution with the best NMI.

    Parameters
    ----------
    graph
        Symmetric connectivities of the cells.
    labels
        Their cell types.
    seed
        Seed of the clustering.
    """
    import scanpy as sc
    from sklearn import metrics

    best = {"NMI": -1.0}
    cells = AnnData(obs=pd.DataFrame(index=np.arange(len(labels)).astype(str)))
    for resolution in RESOLUTIONS:
        sc.tl.leiden(
            cells,
            resolution,
            adjacency=graph.tocsr(),
            flavor="igraph",
            directed=False,
            n_iterations=2,
            random_state=seed,
        )
        clusters = cells.obs["leiden"].to_numpy()
        nmi = metrics.normalized_mutual_info_score(labels, clusters)
        if nmi > best["NMI"]:
            best = {
                "ARI": metrics.adjusted_rand_score(labels, clusters),
                "AMI": metrics.adjusted_mutual_info_score(labels, clusters),
                "NMI": nmi,
                "Homogeneity": metrics.homogeneity_score(labels, clusters),
                "FMI": metrics.fowlkes_mallows_score(labels, clusters),
                "resolution": float(resolution),
            }
    return best


@contextmanager
def _quick_garbage_collection():
    """Benchmarker collects garbage before each metric, for seconds with torch and JAX loaded."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
