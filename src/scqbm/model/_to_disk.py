"""Results of many cells, written to disk while they are computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from torch import Tensor
from tqdm.auto import tqdm

from scqbm._checks import one_of, which_cells, whole
from scqbm.data import CellWriter

if TYPE_CHECKING:  # what the mixin is mixed into
    from scvi.model.base import BaseModelClass as _Model
else:
    _Model = object

CONTENTS = ("latent", "energy", "expression")
_CHUNK = 5000  # cells that are in memory at a time


class ToDiskMixin(_Model):
    """Writes what a model says of its cells to a file."""

    def write_results(
        self,
        path: str | os.PathLike,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        dataloader: Iterable[dict[str, Tensor]] | None = None,
        *,
        contents: Sequence[str] = ("latent", "energy"),
        expression_kwargs: dict[str, Any] | None = None,
        overwrite: bool = False,
        silent: bool = False,
    ) -> None:
        """Write codes, energies or normalised expression to a file, some thousand cells at a time.

        For data that do not fit into memory. The file is an AnnData without counts: ``"latent"``
        goes to ``obsm["X_qbmvi"]``, ``"energy"`` to ``obs["prior_energy"]`` and ``"expression"``
        to ``layers["normalized"]``. ``obs`` of the cells is copied.

        Parameters
        ----------
        path
            The file, ending in ``.h5ad`` or ``.zarr``.
        adata
            The cells, with the genes of the training data; the training data by default.
        indices
            Positions of the cells, or a Boolean mask; all by default.
        batch_size
            Cells in a minibatch; ``scvi.settings.batch_size`` by default.
        dataloader
            Minibatches in the place of ``adata``, as dictionaries of tensors.
        contents
            What to write: some of ``"latent"``, ``"energy"`` and ``"expression"``.
        expression_kwargs
            Arguments of :meth:`get_normalized_expression`, for example ``{"library_size": 1e4}``.
        overwrite
            Whether a file that is there may be replaced.
        silent
            Whether to show no progress bar.

        Examples
        --------
        >>> model.write_results("codes.zarr")
        >>> codes = anndata.read_zarr("codes.zarr").obsm["X_qbmvi"]
        """
        if isinstance(contents, str) or not contents:
            raise ValueError(f"`contents` must be a list of some of {CONTENTS}, not {contents!r}.")
        for one in contents:
            one_of("contents", one, CONTENTS)
        self._check_if_trained(warn=False)
        with_genes = "expression" in contents
        kwargs = {"batch_size": batch_size} if dataloader is None else {}
        expression = {"silent": True, **(expression_kwargs or {}), "return_numpy": True}
        names, chunks, n_cells = self._chunks(adata, indices, dataloader)
        # scvi-tools gives all genes if the cells come from minibatches
        some_genes = expression.get("gene_list") if dataloader is None else None
        var = pd.DataFrame(index=self._gene_names(adata, some_genes))
        with (
            CellWriter(path, var if with_genes else None, overwrite) as writer,
            tqdm(total=n_cells, unit="cell", desc="Writing cells", disable=silent) as progress,
        ):
            done = 0
            for which in chunks:
                obsm, layers, columns = {}, {}, {}
                if "latent" in contents:
                    obsm["X_qbmvi"] = self.get_latent_representation(**which, **kwargs)
                if "energy" in contents:
                    columns["prior_energy"] = self.get_prior_energy(**which, **kwargs)
                if with_genes:
                    layers["normalized"] = self.get_normalized_expression(
                        **which, **kwargs, **expression
                    )
                n = len(next(iter((*obsm.values(), *layers.values(), *columns.values()))))
                if names is None:
                    obs = pd.DataFrame(index=[f"cell_{done + i}" for i in range(n)])
                else:
                    obs = names.iloc[which["indices"]]
                writer.add(obs.assign(**columns), obsm=obsm, layers=layers)
                progress.update(n)
                done += n

    def write_samples(
        self,
        path: str | os.PathLike,
        n_samples: int,
        *,
        seed: int = 0,
        overwrite: bool = False,
        silent: bool = False,
        **kwargs,
    ) -> None:
        """Simulate new cells as :meth:`sample_cells` does, into a file, some thousand at a time.

        Parameters
        ----------
        path
            The file, ending in ``.h5ad`` or ``.zarr``.
        n_samples
            How many cells.
        seed
            Seed of the draws.
        overwrite
            Whether a file that is there may be replaced.
        silent
            Whether to show no progress bar.
        **kwargs
            Arguments of :meth:`sample_cells`.
        """
        whole("n_samples", n_samples)
        self._check_if_trained(warn=False)
        var = pd.DataFrame(index=self._gene_names(None, None))
        with (
            CellWriter(path, var, overwrite) as writer,
            tqdm(total=n_samples, unit="cell", desc="Writing cells", disable=silent) as progress,
        ):
            for done in range(0, n_samples, _CHUNK):
                n, its_seed = min(_CHUNK, n_samples - done), seed
                if done > 0:  # the first chunk is that of `sample_cells` with this seed
                    its_seed = int(np.random.SeedSequence([seed, done]).generate_state(1)[0])
                cells = self.sample_cells(n, seed=its_seed, **kwargs)
                cells.obs.index = [f"drawn_{done + i}" for i in range(n)]
                writer.add(cells.obs, cells.X, obsm={"code": cells.obsm["code"]})
                writer.uns = {"sample_cells": {**cells.uns["sample_cells"], "seed": seed}}
                progress.update(n)

    def _chunks(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | np.ndarray | None,
        dataloader: Iterable[dict[str, Tensor]] | None,
    ) -> tuple[pd.DataFrame | None, Iterator[dict[str, Any]], int | None]:
        """What is known of the cells, how to ask for each chunk of them, and their number."""
        if dataloader is not None:
            if adata is not None or indices is not None:
                raise ValueError("`dataloader` stands for all cells: leave `adata` and `indices`.")
            return None, ({"dataloader": some} for some in _grouped(dataloader)), None
        self._need_cells("dataloader")
        adata = self._validate_anndata(adata)
        n = adata.n_obs
        cells = np.arange(n) if indices is None else which_cells(n, indices)
        starts = range(0, len(cells), _CHUNK)
        obs = adata.obs.loc[:, [c for c in adata.obs if not str(c).startswith("_scvi")]]
        chunks = ({"adata": adata, "indices": cells[i : i + _CHUNK]} for i in starts)
        return obs, chunks, len(cells)

    def _gene_names(self, adata: AnnData | None, some: Sequence[str] | None) -> pd.Index:
        """Names of the genes, numbers if only a datamodule had them."""
        adata = self._adata if adata is None else adata
        if adata is None:
            return pd.Index([f"gene_{i}" for i in range(self.module.n_input)])
        names = adata.var_names
        return names if some is None else names[names.isin(some)]


def _grouped(dataloader: Iterable[dict[str, Tensor]]) -> Iterator[list[dict[str, Tensor]]]:
    """Lists of minibatches that hold some thousand cells together."""
    minibatches = iter(dataloader)
    while first := list(islice(minibatches, 1)):
        size = len(next(x for x in first[0].values() if x is not None))
        yield first + list(islice(minibatches, max(0, _CHUNK // max(size, 1) - 1)))
