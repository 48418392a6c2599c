"""New cells beside real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scqbm.pl._axes import new_axes, plot

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_NEW = "#D55E00"


@plot
def new_cells(
    real: AnnData, new: AnnData, ax: Axes | None = None, max_cells: int = 5000, seed: int = 0
) -> Axes:
    """Plot new cells over real ones, in the first two principal components of the real cells.

    Parameters
    ----------
    real
        Real cells with raw counts in ``X``.
    new
        New cells with the same genes, from :meth:`scqbm.QBMVI.sample_cells`.
    ax
        Where to draw. By default the Axes of a new figure.
    max_cells
        At most this many random cells of each.
    seed
        Seed of the choice.

    Returns
    -------
    The Axes.

    Examples
    --------
    >>> scqbm.pl.new_cells(adata, model.sample_cells(1000))
    """
    if list(real.var_names) != list(new.var_names):
        raise ValueError("`new` must have the genes of `real`, in the same order.")
    from sklearn.decomposition import PCA

    from scqbm.data import log_normalised

    rng = np.random.default_rng(seed)
    values = []
    for cells in (real, new):
        some = np.sort(rng.permutation(cells.n_obs)[:max_cells])
        values.append(_dense(log_normalised(cells.X[some])))
    pca = PCA(2, svd_solver="randomized", random_state=0).fit(values[0])
    if ax is None:
        ax = new_axes(6, 4.5)
    for matrix, name, color in zip(values, ("real", "new"), ("0.7", _NEW), strict=True):
        first, second = pca.transform(matrix).T
        ax.scatter(first, second, s=4, c=color, linewidth=0, alpha=0.7, label=name)
    share = pca.explained_variance_ratio_
    ax.set(
        xlabel=f"PC 1 ({share[0]:.0%} of the variance)",
        ylabel=f"PC 2 ({share[1]:.0%})",
        title="New cells over real cells",
    )
    ax.legend(markerscale=4, frameon=False)
    return ax


def _dense(values) -> np.ndarray:
    return values.toarray() if sparse.issparse(values) else np.asarray(values)
