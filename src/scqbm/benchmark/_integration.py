"""Integration: the metrics of scib-metrics, and Leiden clusters beside the labels."""

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

from scqbm.benchmark._inputs import as_arrays, chosen_cells, pca, rows

# scib-metrics' names: of each metric, and of the scores that it gives
METRICS: dict[str, dict[str, tuple[str, ...]]] = {
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
WEIGHTS = {"batch": 0.4, "bio": 0.6}  # in the Total, as in scIB
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

    The scores are those of ``scib_metrics.benchmark.Benchmarker`` with all its default metrics,
    not rescaled between embeddings, and its averages: batch correction, bio conservation, and
    the Total, which weighs them 0.4 and 0.6. Leiden clusters are compared with the labels, too.

    Parameters
    ----------
    adata
        Counts or log-normalised values in ``X``.
    batch_key
        Column of ``adata.obs`` with the batches. ``None`` leaves the batch metrics out.
    label_key
        Column of ``adata.obs`` with the cell types.
    embeddings
        From a name to an array, a key of ``adata.obsm`` or a model with
        ``get_latent_representation``.
    pre_integrated
        The embedding before integration, which the PCR metric compares with: a key of
        ``adata.obsm`` or an array. By default 50 principal components of the log-normalised ``X``.
    max_cells
        Larger data are scored on a random subset of this size, stratified by batch and label,
        since memory and time grow with the square of the number of cells. ``None`` uses all cells.
    leiden
        Whether to cluster the cells and compare the clusters with the labels.
    seed
        Seed of the subset and of the clustering.

    Returns
    -------
    Tidy table with the columns ``method``, ``group``, ``metric`` and ``value``. The groups are
    ``"bio"`` and ``"batch"`` (scib-metrics), ``"aggregate"`` (their means and the Total) and
    ``"leiden"`` (ARI, AMI, NMI, homogeneity and FMI at the resolution with the best NMI).

    Notes
    -----
    A metric that fails or is not defined (kBET, if each label is in one batch only) is NaN, with a
    warning. It is then left out of the averages of *all* embeddings, so that these stay
    comparable. Neighbours are exact. Cells without a batch or a label are left out.

    Examples
    --------
    >>> table = scqbm.benchmark.integration(adata, "batch", "cell_type", {"QBMVI": model})
    >>> scqbm.pl.integration(table)
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

    table = []
    with _quick_garbage_collection():
        for name, array in arrays.items():
            table += _scores(name, array[keep], before, obs, leiden, seed)
    table = pd.DataFrame(table)
    return pd.concat([table, aggregates(table)], ignore_index=True)


def aggregates(table: pd.DataFrame) -> pd.DataFrame:
    """Average scores as scIB does, over the metrics that are defined for every method.

    Parameters
    ----------
    table
        Scores of :func:`integration`: rows of the groups ``"bio"`` and ``"batch"``, with the
        columns ``method``, ``group``, ``metric`` and ``value``. Other rows are ignored.

    Returns
    -------
    Rows of the group ``"aggregate"``: ``Batch correction``, ``Bio conservation`` and ``Total`` of
    each method.
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


def _scores(name, array, before, obs, leiden, seed) -> list[dict]:
    """Rows with all metrics of one embedding."""
    neighbours = exact_neighbours(array, N_NEIGHBORS)
    groups = dict(METRICS)
    if before is None:  # a label is isolated if it is in few batches
        groups = {"bio": {k: v for k, v in METRICS["bio"].items() if k != "isolated_labels"}}
    table = []
    for group, metrics in groups.items():
        for metric, names in metrics.items():
            values = _scib(metric, group, array, before, obs, neighbours, names)
            table += rows(name, group, values)
    if leiden:
        graph = neighbours.subset_neighbors(15).knn_graph_connectivities
        table += rows(name, "leiden", leiden_agreement(graph, obs["label"].to_numpy(), seed))
    return table


def _scib(metric, group, array, before, obs, neighbours, names) -> dict[str, float]:
    """One metric by ``Benchmarker``, alone, so that the others are scored even if it fails."""
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
        return {name: values[name] for name in names}
    except Exception as error:  # whatever it is, the other metrics can be scored
        warnings.warn(f"scib-metrics could not compute {metric}: {error!r}.", stacklevel=4)
        return dict.fromkeys(names, np.nan)


def exact_neighbours(array: np.ndarray, n_neighbors: int):
    """The nearest neighbours of each cell, itself included, in the form of scib-metrics.

    They are exact, and so the same on every machine. The approximate search that is the default
    of scib-metrics may return too few.
    """
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    # without a query no cell is its own neighbour, so a duplicate cannot take its place
    finder = NearestNeighbors(n_neighbors=n_neighbors - 1, algorithm="brute").fit(array)
    distances, indices = finder.kneighbors()
    own = np.arange(len(array))[:, None]
    return NeighborsResults(
        indices=np.hstack([own, indices]), distances=np.hstack([0.0 * own, distances])
    )


def leiden_agreement(graph, labels: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Agreement of Leiden clusters with the labels, at the resolution with the best NMI."""
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
    """Benchmarker collects garbage before each metric: seconds, once torch and JAX are loaded."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
