"""Cells that are written to disk chunk by chunk, so that few of them are in memory at a time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

FORMATS = (".h5ad", ".zarr")


class CellWriter:
    """Writes an ``.h5ad`` file or a ``.zarr`` store that anndata reads, in chunks of cells.

    It is written under another name and renamed at the end, so that a file of the right name is
    whole. Use it in a ``with`` statement.

    Parameters
    ----------
    path
        Where to, ending in ``.h5ad`` or ``.zarr``.
    var
        Names of the genes, as an index without columns; ``None`` if there are no genes.
    overwrite
        Whether a file that is there may be replaced.

    Attributes
    ----------
    uns
        What is known of all cells together, written at the end.
    """

    def __init__(
        self, path: str | os.PathLike, var: pd.DataFrame | None = None, overwrite: bool = False
    ):
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise ValueError(f"`path` must end in {' or '.join(FORMATS)}, not {str(path)!r}.")
        if self.path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: pass overwrite=True to replace it.")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"The folder of `path` does not exist: {self.path.parent}.")
        self.var = var
        self.uns: dict[str, Any] = {}
        self._unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        self._obs: list[pd.DataFrame] = []
        self._root: Any = None

    def __enter__(self) -> CellWriter:
        _remove(self._unfinished)
        if self.path.suffix == ".h5ad":
            import h5py

            self._root = h5py.File(self._unfinished, "w")
        else:
            import zarr

            self._root = zarr.open_group(self._unfinished, mode="w", zarr_format=2)  # all read it
        self._root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in ("obsm", "layers"):
            write_elem(self._root, name, {})
        return self

    def add(
        self,
        obs: pd.DataFrame,
        X: sparse.csr_matrix | None = None,
        **arrays: dict[str, np.ndarray],
    ) -> None:
        """Append some cells, each chunk with the same fields.

        Parameters
        ----------
        obs
            Names of the cells and what is known of each.
        X
            Their counts.
        **arrays
            ``obsm`` and ``layers``: arrays by name.
        """
        self._obs.append(obs)
        if X is not None:
            self._append(self._root, "X", X)
        for where, named in arrays.items():
            for name, values in named.items():
                self._append(self._root[where], name, values)

    def __exit__(self, kind, error, traceback) -> None:
        whole = False
        try:
            if kind is None:
                nothing = pd.DataFrame(index=pd.Index([], dtype=str))
                write_elem(self._root, "obs", pd.concat(self._obs) if self._obs else nothing)
                write_elem(self._root, "var", nothing if self.var is None else self.var)
                write_elem(self._root, "uns", self.uns)
                whole = True
        finally:
            if self.path.suffix == ".h5ad":
                self._root.close()
            if not whole:
                _remove(self._unfinished)
        if whole:
            _remove(self.path)
            self._unfinished.rename(self.path)

    def _append(self, group: Any, key: str, values: Any) -> None:
        if key not in group:
            stays = (
                sparse.issparse(values) or self.path.suffix == ".zarr"
            )  # these grow as they are
            grows = {} if stays else {"maxshape": (None, *values.shape[1:])}
            write_elem(group, key, values, dataset_kwargs=grows)
        elif sparse.issparse(values):
            sparse_dataset(group[key]).append(values)
        elif self.path.suffix == ".zarr":
            group[key].append(values)
        else:
            stored, n = group[key], len(group[key])
            stored.resize(n + len(values), axis=0)
            stored[n:] = values


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
