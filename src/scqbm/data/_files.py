"""Real datasets: files ``NAME.h5ad`` in the folder that ``SCQBM_DATA`` names."""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
from anndata import AnnData

from scqbm import _checks
from scqbm.data._counts import are_counts, log_normalised

_VARIABLE = "SCQBM_DATA"


def available() -> list[str]:
    """Names of the datasets that :func:`load` can read.

    Returns
    -------
    Sorted names; none if the environment variable ``SCQBM_DATA`` names no folder.
    """
    # an empty variable counts as unset: Path("") would be the current folder
    folder = os.environ.get(_VARIABLE)
    return sorted(path.stem for path in Path(folder).glob("*.h5ad")) if folder else []


def load(name: str) -> AnnData:
    """Read the dataset ``NAME.h5ad`` from the folder that ``SCQBM_DATA`` names.

    Parameters
    ----------
    name
        File name without ``.h5ad``, one of :func:`available`.

    Returns
    -------
    The dataset as it is stored.

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

    Genes are ranked on log-normalised counts by scanpy's ``"seurat"`` flavour. Cells that have no
    count in the chosen genes are left out, since the log of their library size does not exist.

    Parameters
    ----------
    adata
        Raw counts in ``X``. Not changed. A backed AnnData is read into memory.
    batch_key
        Column of ``adata.obs`` with the batches: genes are then ranked within each batch. ``None``
        ranks them over all cells.
    n_top_genes
        Number of genes to keep. All are kept if there are no more than that.

    Returns
    -------
    A copy with the chosen genes in their original order.
    """
    if adata.isbacked:
        adata = adata.to_memory()
    if not are_counts(adata.X):
        raise ValueError("`adata` must hold raw counts (non-negative integers) in X.")
    if batch_key is not None:
        _checks.column(adata, "batch_key", batch_key)
    _checks.whole("n_top_genes", n_top_genes)

    keep = slice(None)
    if n_top_genes < adata.n_vars:
        import scanpy as sc  # slow to import, so only here

        obs = adata.obs[[]].copy()
        if batch_key is not None:  # scanpy wants categories, also of numbers, and each with cells
            batch = adata.obs[batch_key].astype("category")
            obs[batch_key] = batch.cat.remove_unused_categories()
        logged = AnnData(log_normalised(adata.X), obs=obs, var=adata.var[[]])
        sc.pp.highly_variable_genes(
            logged, flavor="seurat", batch_key=batch_key, n_top_genes=n_top_genes
        )
        keep = logged.var["highly_variable"].to_numpy()
    has_counts = np.asarray(adata[:, keep].X.sum(axis=1)).ravel() > 0
    return adata[has_counts, keep].copy()
