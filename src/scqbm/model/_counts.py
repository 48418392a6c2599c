"""Are these raw counts? One pass over the values, in blocks where they lie on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from scipy.sparse import issparse

_BLOCK = 10_000_000  # values in memory at once


def check_counts(x: Any, what: Literal["NaN or infinite", "negative"]) -> None:
    """Raise a ValueError if the counts hold such values."""
    for values in _blocks(x):
        if values.dtype.kind not in "fi" or not values.size:
            continue
        bad = values.min() < 0 if what == "negative" else not np.isfinite(values).all()
        if bad:
            raise ValueError(
                f"`adata` holds {what} counts in X (or in the registered `layer`): QBMVI models "
                "raw counts; pass them with setup_anndata(layer=...) or drop the cells or genes "
                "concerned."
            )


def _blocks(x: Any) -> Iterator[np.ndarray]:
    """The stored values; none where they are neither in memory nor in an open file (dask)."""
    if issparse(x):
        x = x.data
    elif hasattr(x, "group"):  # a sparse matrix in a file
        x = x.group["data"]
    if isinstance(x, np.ndarray):
        yield x
    elif type(x).__module__.partition(".")[0] in ("h5py", "zarr"):
        rows = max(1, _BLOCK // int(np.prod(x.shape[1:], dtype=int)))
        for start in range(0, x.shape[0], rows):
            yield np.asarray(x[start : start + rows])
