"""What every task needs: embeddings as arrays, cells with labels, a fair subsample."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse


def as_array(adata: AnnData, name: str, embedding: Any) -> np.ndarray:
    """One row a cell, from an array, a key of ``adata.obsm`` or a trained model."""
    if isinstance(embedding, str):
        if embedding not in adata.obsm:
            raise ValueError(
                f"`embeddings[{name!r}]` must be a key of adata.obsm ({list(adata.obsm)}), "
                f"not {embedding!r}."
            )
        embedding = adata.obsm[embedding]
    elif hasattr(embedding, "get_latent_representation"):
        embedding = embedding.get_latent_representation(adata)
    array = np.asarray(embedding, dtype=np.float32)
    if array.ndim != 2 or len(array) != adata.n_obs:
        raise ValueError(
            f"`embeddings[{name!r}]` must have one row a cell, shape ({adata.n_obs}, n), "
            f"not {array.shape}."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"`embeddings[{name!r}]` holds NaN or infinite values.")
    return array


def as_arrays(adata: AnnData, embeddings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """:func:`as_array` of each."""
    if not isinstance(embeddings, Mapping) or not embeddings:
        raise ValueError(
            "`embeddings` must be a dict from a name to an array, a key of adata.obsm or a model."
        )
    return {name: as_array(adata, name, e) for name, e in embeddings.items()}


def column(adata: AnnData, argument: str, key: str) -> np.ndarray:
    """A column of ``adata.obs`` as an array of objects, missing values as ``None``."""
    if key not in adata.obs:
        raise ValueError(f"`{argument}` must be a column of adata.obs, not {key!r}.")
    values = adata.obs[key]
    return np.array([None if m else v for v, m in zip(values, values.isna(), strict=True)], object)


def complete(**columns: np.ndarray) -> np.ndarray:
    """Indices of the cells without a missing value in any column; says how many were left out."""
    keep = np.ones(len(next(iter(columns.values()))), bool)
    for values in columns.values():
        keep &= np.array([value is not None for value in values])
    if not keep.all():
        warnings.warn(
            f"{(~keep).sum()} cells have no {' or no '.join(columns)} and are left out.",
            stacklevel=4,  # whoever called the task
        )
    return np.flatnonzero(keep)


def subsample(strata: np.ndarray, max_cells: int | None, seed: int) -> np.ndarray:
    """Sorted indices of at most ``max_cells`` cells, each stratum in proportion.

    Shares are rounded down, at least one cell a stratum; what is left goes to the strata with the
    largest remainders. With more strata than cells it is a plain random subset.
    """
    n = len(strata)
    if max_cells is None or n <= max_cells:
        return np.arange(n)
    rng = np.random.default_rng(seed)
    codes, _ = pd.factorize(strata)
    sizes = np.bincount(codes)
    if len(sizes) > max_cells:
        return np.sort(rng.choice(n, max_cells, replace=False))
    exact = sizes * max_cells / n
    quota = np.maximum(np.floor(exact).astype(int), 1)
    while (missing := max_cells - quota.sum()) != 0:
        step = np.sign(missing)
        order = np.argsort(-step * (exact - quota), kind="stable")
        order = order[(quota[order] + step >= 1) & (quota[order] + step <= sizes[order])]
        quota[order[: abs(missing)]] += step
    parts = [
        rng.choice(np.flatnonzero(codes == code), size, replace=False)
        for code, size in enumerate(quota)
    ]
    return np.sort(np.concatenate(parts))


def chosen_cells(
    adata: AnnData, batch_key: str | None, label_key: str, max_cells: int | None, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Indices of a fair subset with a label and a batch, and its columns as strings."""
    columns = {"label": column(adata, "label_key", label_key)}
    if batch_key is not None:
        columns["batch"] = column(adata, "batch_key", batch_key)
    keep = complete(**columns)
    columns = {name: values[keep].astype(str) for name, values in columns.items()}
    strata = pd.MultiIndex.from_arrays(list(columns.values())).to_flat_index()
    chosen = subsample(strata, max_cells, seed)
    return keep[chosen], {name: values[chosen] for name, values in columns.items()}


def log_normalised(counts) -> np.ndarray | sparse.spmatrix:
    """Log of counts scaled to 10,000 a cell; anything but counts is returned as it is."""
    values = counts.data if sparse.issparse(counts) else np.asarray(counts)
    if np.any(values < 0) or np.any(values != np.rint(values)):
        return counts
    import scanpy as sc

    # scaled by hand-off to scanpy on a copy, so that the caller's matrix stays as it was
    cells = AnnData(counts.astype(np.float32).copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return cells.X


def pca(counts, n_comps: int = 50) -> np.ndarray:
    """Principal components of log-normalised counts, what scIB takes as "before integration"."""
    import scanpy as sc

    cells = AnnData(log_normalised(counts))
    sc.pp.pca(cells, n_comps=min(n_comps, min(cells.shape) - 1), random_state=0)
    return cells.obsm["X_pca"]
