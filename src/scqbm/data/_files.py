"""Real datasets: files ``NAME.h5ad`` in the folder named by ``SCQBM_DATA``."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path

import anndata
import numpy as np
from anndata import AnnData
from scipy import sparse

_VARIABLE = "SCQBM_DATA"


def available() -> list[str]:
    """Names of the datasets that :func:`load` can read.

    Returns
    -------
    Sorted names, empty if the environment variable ``SCQBM_DATA`` names no folder.
    """
    # An empty variable means unset: Path("") would silently be the current folder.
    folder = os.environ.get(_VARIABLE)
    return sorted(path.stem for path in Path(folder).glob("*.h5ad")) if folder else []


def load(name: str) -> AnnData:
    """Read the dataset ``NAME.h5ad`` from the folder named by ``SCQBM_DATA``.

    Parameters
    ----------
    name
        File name without ``.h5ad``, one of :func:`available`.

    Returns
    -------
    The dataset as stored.

    Raises
    ------
    FileNotFoundError
        If ``SCQBM_DATA`` is unset or its folder has no such file.
    """
    if name not in available():
        raise FileNotFoundError(
            f"Dataset {name!r} was not found: set the environment variable {_VARIABLE} "
            f"to a folder that holds {name}.h5ad (now {os.environ.get(_VARIABLE)!r})."
        )
    return anndata.read_h5ad(Path(os.environ[_VARIABLE]) / f"{name}.h5ad")


def prepare(adata: AnnData, batch_key: str | None = None, n_top_genes: int = 2000) -> AnnData:
    """Keep the highly variable genes, with raw counts in ``X``.

    Genes are ranked on normalised log counts by scanpy's ``"seurat"`` flavour, within batches if
    ``batch_key`` is given. All genes are kept if there are no more than ``n_top_genes``.

    Parameters
    ----------
    adata
        Raw counts in ``X``. Not changed.
    batch_key
        Column of ``adata.obs`` that holds the batch.
    n_top_genes
        Number of genes to keep.

    Returns
    -------
    A copy with the chosen genes in their original order. Cells without a single count in those
    genes are left out, since the log of their library size does not exist.
    """
    values = adata.X.data if sparse.issparse(adata.X) else np.asarray(adata.X)
    if np.any(values < 0) or np.any(values != np.rint(values)):
        raise ValueError("`adata` must hold raw counts (non-negative integers) in X.")
    if batch_key is not None and batch_key not in adata.obs:
        raise ValueError(f"`batch_key` must be a column of adata.obs, not {batch_key!r}.")
    if not isinstance(n_top_genes, Integral) or n_top_genes < 1:
        raise ValueError(f"`n_top_genes` must be an integer of at least 1, not {n_top_genes!r}.")

    keep = slice(None)
    if n_top_genes < adata.n_vars:
        import scanpy as sc  # slow to import, so only here

        logged = AnnData(adata.X.copy(), obs=adata.obs, var=adata.var[[]])
        sc.pp.normalize_total(logged, target_sum=1e4)
        sc.pp.log1p(logged)
        sc.pp.highly_variable_genes(
            logged, flavor="seurat", batch_key=batch_key, n_top_genes=n_top_genes
        )
        keep = logged.var["highly_variable"].to_numpy()
    has_counts = np.asarray(adata[:, keep].X.sum(axis=1)).ravel() > 0
    return adata[has_counts, keep].copy()
