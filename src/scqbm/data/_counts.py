"""Counts: are they raw, and their log-normalised values."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse


def are_counts(values) -> bool:
    """Whether all values are non-negative integers.

    Parameters
    ----------
    values
        A dense or sparse matrix.
    """
    values = values.data if sparse.issparse(values) else np.asarray(values)
    return not (np.any(values < 0) or np.any(values != np.rint(values)))


def log_normalised(counts):
    """``log(1 + x)`` of counts that are scaled to 10,000 per cell.

    Parameters
    ----------
    counts
        A dense or sparse matrix, one row per cell; not changed. Values that are not counts are
        returned as they are: they are taken to be normalised already.
    """
    if not are_counts(counts):
        return counts
    import scanpy as sc  # slow to import, so only here

    cells = AnnData(counts.astype(np.float32).copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return cells.X
