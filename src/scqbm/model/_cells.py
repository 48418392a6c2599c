"""Which cells a model was trained on, and minibatches of cells in the order that was asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import settings
from scvi.model.base import BaseModelClass
from torch import Tensor

if TYPE_CHECKING:  # what the mixin is mixed into
    from scvi.model import SCVI as _Model
else:
    _Model = object


def fingerprint(adata: AnnData) -> str:
    """Tells these cells, in this order, from others: by their number and some of their names."""
    # not all: that would take long if there are many
    some = adata.obs_names[:: max(1, adata.n_obs // 10_000)]
    names = pd.util.hash_array(some.to_numpy(dtype=object))
    return f"{adata.n_obs}:{hashlib.sha256(names.tobytes()).hexdigest()[:16]}"


def training_cells(model: BaseModelClass) -> np.ndarray | None:
    """Positions of the training cells in the model's data; ``None`` if it was given other data."""
    cells = getattr(model, "train_indices", None)
    adata = model._adata
    if cells is None or adata is None:
        return None
    cells, known = np.asarray(cells), getattr(model, "trained_on_", None)
    if known is None:  # SCVI, or a model that an earlier version saved
        return cells if cells.max(initial=-1) < adata.n_obs else None
    return cells if known == fingerprint(adata) else None


class InOrder:
    """Minibatches of backed cells in the order that was asked for.

    scvi-tools sorts the cells of a minibatch if they are on disk, and each may be in it only once.

    Parameters
    ----------
    loader_of
        Makes a loader of some cells, which gives all of them in one minibatch.
    cells
        Positions of the cells.
    batch_size
        Cells in a minibatch.
    """

    def __init__(
        self, loader_of: Callable[[np.ndarray], Iterable], cells: np.ndarray, batch_size: int
    ):
        self.loader_of = loader_of
        self.parts = np.split(cells, range(batch_size, len(cells), batch_size))

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for part in self.parts:
            cells, back = np.unique(part, return_inverse=True)
            for tensors in self.loader_of(cells):
                yield {name: None if x is None else x[back] for name, x in tensors.items()}


def loader_in_order(
    make: Callable[..., Any], adata: AnnData | None, indices: Any, batch_size: int, **kwargs: Any
) -> Any:
    """A loader as ``make`` gives it, or one that keeps the order of backed cells."""
    backed = adata is not None and adata.isbacked
    if backed and indices is not None and not kwargs.get("shuffle"):
        cells = np.asarray(indices)
        cells = np.flatnonzero(cells) if cells.dtype == bool else cells
        if len(cells) > 1 and np.any(np.diff(cells) <= 0):

            def loader_of(some: np.ndarray) -> Iterable:
                return make(adata=adata, indices=some, batch_size=len(some), **kwargs)

            return InOrder(loader_of, cells, batch_size)
    return make(adata=adata, indices=indices, batch_size=batch_size, **kwargs)


class CellsMixin(_Model):
    """Loads backed cells in the order that was asked for, whatever method asks."""

    def _make_data_loader(
        self,
        adata: AnnData,
        indices: Any = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        data_loader_class: Any = None,
        **data_loader_kwargs: Any,
    ) -> Any:
        return loader_in_order(
            super()._make_data_loader,
            adata,
            indices,
            settings.batch_size if batch_size is None else batch_size,
            shuffle=shuffle,
            data_loader_class=data_loader_class,
            **data_loader_kwargs,
        )
