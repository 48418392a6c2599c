"""What the benchmark functions share: their inputs as arrays, a fair subsample, table rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scqbm import _checks
from scqbm.data import log_normalised


def as_array(adata: AnnData, name: str, embedding: Any) -> np.ndarray:
    """One row per cell, from an array, a key of ``adata.obsm`` or a trained model."""
    if isinstance(embedding, str):
        if embedding not in adata.obsm:
            raise ValueError(
                f"`embeddings[{name!r}]` must be a key of adata.obsm ({list(adata.obsm)}), "
                f"not {embedding!r}."
            )
        embedding = adata.obsm[embedding]
    elif is_model(embedding):
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
    """:func:`as_array` of each embedding."""
    if not isinstance(embeddings, Mapping) or not embeddings:
        raise ValueError(
            "`embeddings` must be a dict from a name to an array, a key of adata.obsm or a model."
        )
    return {name: as_array(adata, name, e) for name, e in embeddings.items()}


def is_model(thing: Any) -> bool:
    """Whether this is a trained model rather than an array or a key."""
    return hasattr(thing, "get_latent_representation")


def check_models(models: Mapping[str, Any]) -> None:
    """Raise a ValueError unless each model has a name."""
    if not isinstance(models, Mapping):
        raise ValueError("`models` must be a dict from a name to a trained model.")


def column(adata: AnnData, argument: str, key: str) -> np.ndarray:
    """A column of ``adata.obs`` as an array of objects; missing values are ``None``."""
    _checks.column(adata, argument, key)
    values = adata.obs[key]
    return np.array([None if m else v for v, m in zip(values, values.isna(), strict=True)], object)


def known(values: np.ndarray) -> np.ndarray:
    """A mask of the values of a :func:`column` that are not missing."""
    return np.array([value is not None for value in values], bool)


def chosen_cells(
    adata: AnnData, batch_key: str | None, label_key: str, max_cells: int | None, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Indices of a fair subset of the cells, and their labels and batches as strings.

    Cells without a label or a batch are left out, with a warning.
    """
    if max_cells is not None:
        _checks.whole("max_cells", max_cells)
    columns = {"label": column(adata, "label_key", label_key)}
    if batch_key is not None:
        columns["batch"] = column(adata, "batch_key", batch_key)
    complete = np.all([known(values) for values in columns.values()], axis=0)
    if not complete.all():
        warnings.warn(
            f"{(~complete).sum()} cells have no {' or no '.join(columns)} and are left out.",
            stacklevel=3,  # the line that called the benchmark function
        )
    keep = np.flatnonzero(complete)
    columns = {name: values[keep].astype(str) for name, values in columns.items()}
    strata = pd.MultiIndex.from_arrays(list(columns.values())).to_flat_index()
    chosen = subsample(strata, max_cells, seed)
    return keep[chosen], {name: values[chosen] for name, values in columns.items()}


def subsample(strata: np.ndarray, max_cells: int | None, seed: int) -> np.ndarray:
    """Sorted indices of at most ``max_cells`` cells, each stratum in proportion to its size.

    Shares are rounded down, but each stratum keeps at least one cell. The cells that are then
    missing come from the strata with the largest remainders. If there are more strata than cells,
    the subset is random.
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


def dense(values: Any) -> np.ndarray:
    """A dense array of a dense or sparse matrix."""
    return values.toarray() if sparse.issparse(values) else np.asarray(values)


def pca(counts: Any, n_comps: int = 50) -> np.ndarray:
    """Principal components of log-normalised counts: scIB's embedding before integration."""
    import scanpy as sc

    cells = AnnData(log_normalised(counts))
    sc.pp.pca(cells, n_comps=min(n_comps, min(cells.shape) - 1), random_state=0)
    return cells.obsm["X_pca"]


def rows(method: str, group: str, values: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows of a tidy table, one per metric."""
    return [
        {"method": method, "group": group, "metric": metric, "value": float(value)}
        for metric, value in values.items()
    ]
