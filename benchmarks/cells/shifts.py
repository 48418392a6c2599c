"""Batches that differ in more than technique, made from real and simulated cells.

What is left of the cells keeps its counts, so that the truth is known: whatever an embedding loses
of the types or of the order, it lost by mixing.
"""

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

ENOUGH = 20  # cells of a type in a batch, from which on its absence counts
WINDOW = 0.6  # share of the order that a batch sees


def without_types(adata: AnnData, batch: str, label: str, seed: int, n_types: int = 2) -> AnnData:
    """Each batch lacks two types that it had and that others keep; ``uns["deleted"]``."""
    rng = np.random.default_rng(seed)
    sizes = pd.crosstab(adata.obs[batch].astype(str), adata.obs[label].astype(str))
    keep, gone = np.ones(adata.n_obs, bool), set()
    batches, labels = adata.obs[batch].astype(str), adata.obs[label].astype(str)
    for name in rng.permutation(sizes.index):
        n_others = (sizes.drop(index=name) >= ENOUGH).sum()
        able = sizes.columns[(sizes.loc[name] >= ENOUGH) & (n_others >= min(2, len(sizes) - 1))]
        if len(able) < n_types:
            able = sizes.columns[(sizes.loc[name] >= ENOUGH) & (n_others >= 1)]
        n_left = (sizes.loc[name] > 0).sum() - 2  # a batch keeps two types at least
        for one in rng.choice(able, max(0, min(n_types, len(able), n_left)), replace=False):
            keep &= ~((batches == name) & (labels == one)).to_numpy()
            sizes.loc[name, one] = 0
            gone.add(one)
    altered = adata[keep].copy()
    altered.uns["deleted"] = sorted(gone)
    return altered


def skewed_types(adata: AnnData, batch: str, label: str, seed: int, ratio: float = 10) -> AnnData:
    """Half of the batches keep a tenth of half of the types, the other batches of the others."""
    rng = np.random.default_rng(seed)
    batches, labels = adata.obs[batch].astype(str), adata.obs[label].astype(str)
    some_batches, some_labels = (_half(values.unique(), rng) for values in (batches, labels))
    fewer = (batches.isin(some_batches) == labels.isin(some_labels)).to_numpy()
    return adata[~fewer | (rng.random(adata.n_obs) < 1 / ratio)].copy()


def windows_of_order(adata: AnnData, batch: str, order: str, seed: int) -> AnnData:
    """Each batch sees its own window of the order; the windows overlap and cover all of it."""
    # ties are broken at random, so that a window may end within a stage
    rng = np.random.default_rng(seed)
    values = pd.to_numeric(adata.obs[order]).to_numpy(float)
    place = np.full(adata.n_obs, np.nan)
    known = np.flatnonzero(np.isfinite(values))
    ranked = known[np.lexsort((rng.random(len(known)), values[known]))]
    place[ranked] = (np.arange(len(known)) + 0.5) / len(known)
    codes = adata.obs[batch].astype("category").cat.codes.to_numpy()
    start = codes / max(1, codes.max()) * (1 - WINDOW)
    inside = (place >= start) & (place <= start + WINDOW)
    return adata[inside | ~np.isfinite(place)].copy()


def with_batches(adata: AnnData, seed: int, n_batches: int = 2, strength: float = 0.5) -> AnnData:
    """Random batches with a technical effect: each keeps its own share of the counts of a gene."""
    rng = np.random.default_rng(seed)
    batch = rng.integers(n_batches, size=adata.n_obs)
    kept = np.exp(-np.abs(strength * rng.standard_normal((n_batches, adata.n_vars))))
    counts = sparse.csr_matrix(adata.X).copy()
    rows = np.repeat(batch, np.diff(counts.indptr))
    share = kept[rows, counts.indices]
    counts.data = rng.binomial(counts.data.astype(np.int64), share).astype(np.float32)
    counts.eliminate_zeros()
    altered = adata.copy()
    altered.X = counts
    altered.obs["batch"] = pd.Categorical([f"batch_{b}" for b in batch])
    return altered


def _half(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(np.sort(values), len(values) // 2, replace=False)
