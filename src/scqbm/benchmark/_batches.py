"""What of the batch is left within cell types, and what of the cells is lost within batches."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scqbm import _checks
from scqbm.benchmark._classification import classify_by, one_thread
from scqbm.benchmark._inputs import as_arrays, chosen_cells, pca, rows

_FEWEST = 10  # cells of a batch and label that say something


def batches(
    adata: AnnData,
    embeddings: Mapping[str, Any],
    batch_key: str,
    label_key: str,
    *,
    n_neighbors: int = 15,
    max_cells: int | None = 5000,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of the batch is left within types, and of the neighbours within batches.

    Mixing should remove the batch within a cell type, and nothing else. The two groups of scores
    show both sides, and neither depends on how many cells of a type each batch has.

    Parameters
    ----------
    adata
        The cells, with raw counts.
    embeddings
        From a name to an array, a key of ``adata.obsm`` or a model with
        ``get_latent_representation``.
    batch_key
        Column of ``adata.obs`` with the batches.
    label_key
        Column of ``adata.obs`` with the cell types.
    n_neighbors
        Number of neighbours.
    max_cells
        Larger data are scored on a random subset of this size, stratified by batch and label.
        ``None`` uses all cells.
    seed
        Seed of the subset and of the folds.

    Returns
    -------
    Tidy table with the columns ``method``, ``group``, ``metric`` and ``value``:

    - group ``"within labels"``, metric ``batch probe``: accuracy at which a kNN classifier tells
      the batch of cells of one type, with as many cells of each batch, less that of guessing; mean
      over types, by their cells. 0 where batches are mixed, at most 1 less the share of a guess.
    - group ``"within batches"``, metric ``neighbours kept``: share of the nearest neighbours of a
      cell among the cells of its batch that are also its neighbours by the principal components
      of that batch alone.

    Examples
    --------
    >>> scqbm.benchmark.batches(adata, {"QBMVI": model}, "batch", "cell_type")
    """
    _checks.whole("n_neighbors", n_neighbors)
    arrays = as_arrays(adata, embeddings)
    keep, columns = chosen_cells(adata, batch_key, label_key, max_cells, seed)
    batch, label = columns["batch"], columns["label"]
    parts = [np.flatnonzero(batch == one) for one in np.unique(batch)]
    parts = [part for part in parts if len(part) > n_neighbors + 1]
    own = [_neighbours(pca(adata.X[keep[part]]), n_neighbors) for part in parts]
    table = []
    for name, array in arrays.items():
        array = array[keep]
        probe = _probe(array, batch, label, n_neighbors, seed)
        table += rows(name, "within labels", {"batch probe": probe})
        shares = [
            _overlap(_neighbours(array[part], n_neighbors), its)
            for part, its in zip(parts, own, strict=True)
        ]
        kept = np.average(shares, weights=[len(p) for p in parts]) if parts else np.nan
        table += rows(name, "within batches", {"neighbours kept": kept})
    return pd.DataFrame(table)


def _probe(array, batch, label, n_neighbors, seed) -> float:
    """Mean over types of the balanced accuracy of the batch, less that of guessing."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    scores, weights = [], []
    for one in np.unique(label):
        mine = np.flatnonzero(label == one)
        names, sizes = np.unique(batch[mine], return_counts=True)
        mine = mine[np.isin(batch[mine], names[sizes >= _FEWEST])]
        names, sizes = np.unique(batch[mine], return_counts=True)
        if len(names) < 2:
            continue
        # as many cells of each batch: a kNN vote would else go to the larger ones
        rng = np.random.default_rng(seed)
        mine = np.concatenate(
            [rng.choice(mine[batch[mine] == name], sizes.min(), replace=False) for name in names]
        )
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        model = classify_by("kNN").set_params(n_neighbors=min(n_neighbors, sizes.min() // 2))
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guess = cross_val_predict(model, array[mine], batch[mine], cv=folds)
        accuracy = balanced_accuracy_score(batch[mine], guess)
        scores.append(accuracy - 1 / len(names))
        weights.append(len(mine))
    return float(np.average(scores, weights=weights)) if scores else np.nan


def _neighbours(array: np.ndarray, n: int) -> np.ndarray:
    """Nearest other cells of each cell."""
    from sklearn.neighbors import NearestNeighbors

    with one_thread():
        return NearestNeighbors(n_neighbors=n).fit(array).kneighbors(return_distance=False)


def _overlap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean share of neighbours that both have."""
    shared = [np.isin(a, b).mean() for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean(shared))
