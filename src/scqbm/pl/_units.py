"""Units of the code by group of cells, and the couplings between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scqbm._checks import column, whole
from scqbm.pl._axes import new_axes, plot

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@plot
def units(
    adata: AnnData,
    group_key: str,
    code_key: str = "X_qbmvi",
    n_units: int | None = 40,
    ax: Axes | None = None,
) -> Axes:
    """Plot the mean of each unit of the code, or program, in each group of cells.

    Parameters
    ----------
    adata
        The cells.
    group_key
        Column of ``adata.obs`` with the groups, such as cell types.
    code_key
        Key of ``adata.obsm`` with the codes, from
        :meth:`scqbm.QBMVI.get_latent_representation`, or with scores of programs, from
        :meth:`scqbm.QBMVI.get_programs`.
    n_units
        How many units to show, those that differ most between the groups; ``None`` shows all.
    ax
        Where to draw. By default the Axes of a new figure.

    Returns
    -------
    The Axes.

    Examples
    --------
    >>> adata.obsm["X_qbmvi"] = model.get_latent_representation()
    >>> scqbm.pl.units(adata, "cell_type")
    >>> model.get_programs(n_programs=15, key_added="programs")
    >>> scqbm.pl.units(adata, "cell_type", code_key="programs")
    """
    column(adata, "group_key", group_key)
    if code_key not in adata.obsm:
        raise ValueError(
            f"`code_key` must be a key of adata.obsm ({list(adata.obsm)}), not {code_key!r}."
        )
    if n_units is not None:
        whole("n_units", n_units)
    codes = adata.obsm[code_key]
    named = isinstance(codes, pd.DataFrame)
    codes = codes if named else pd.DataFrame(np.asarray(codes))
    # cells without scores count nothing, and neither do groups of such cells
    means = codes.groupby(adata.obs[group_key].to_numpy(), observed=True).mean().dropna()
    if means.empty:
        raise ValueError(
            f"`code_key` {code_key!r} holds no values for the groups in {group_key!r}."
        )
    chosen = means.var(0).sort_values(ascending=False, kind="stable").index[:n_units]
    means = means[chosen]
    means = means.iloc[_similar(means.to_numpy()), _similar(means.to_numpy().T)]
    if ax is None:
        ax = new_axes(2.5 + 0.2 * means.shape[1], 1.5 + 0.3 * len(means))
    bits = np.nanmin(codes.to_numpy()) >= 0 and np.nanmax(codes.to_numpy()) <= 1
    low, high = (
        (0, 1) if bits else (-np.abs(means.to_numpy()).max(), np.abs(means.to_numpy()).max())
    )
    image = ax.imshow(
        means, aspect="auto", cmap="viridis" if bits else "PuOr", vmin=low, vmax=high
    )
    ax.figure.colorbar(
        image, ax=ax, label="mean score" if named else "mean of the unit", shrink=0.8
    )
    ax.set_xticks(range(means.shape[1]), means.columns, rotation=90, fontsize=7)
    ax.set_yticks(range(len(means)), means.index)
    what = "Programs" if named else "Units"
    ax.set(xlabel="" if named else "unit of the code", title=f"{what} by {group_key}")
    return ax


@plot
def couplings(model, units: list[int] | None = None, ax: Axes | None = None) -> Axes:
    """Plot the couplings between the two layers of a model's prior, similar units side by side.

    Parameters
    ----------
    model
        A trained :class:`scqbm.QBMVI`.
    units
        Visible units to show, all by default.
    ax
        Where to draw. By default the Axes of a new figure.

    Returns
    -------
    The Axes.

    Examples
    --------
    >>> scqbm.pl.couplings(model)
    """
    table = model.get_couplings(None).pivot(index="unit", columns="other", values="coupling")
    if units is not None:
        names = [f"unit_{i}" for i in units]
        missing = [name for name in names if name not in table.index]
        if missing or not names:
            raise ValueError(
                f"`units` must be visible units, from 0 to {len(table) - 1}, not {units!r}."
            )
        table = table.loc[names]
    values = table.iloc[_similar(table.to_numpy()), _similar(table.to_numpy().T)]
    if ax is None:
        ax = new_axes(6.5, 5.5)
    most = np.abs(values.to_numpy()).max() or 1.0
    image = ax.imshow(values, aspect="auto", cmap="PuOr", vmin=-most, vmax=most)
    ax.figure.colorbar(image, ax=ax, label="coupling (positive: same value)", shrink=0.8)
    for axis, names in ((ax.xaxis, values.columns), (ax.yaxis, values.index)):
        every = max(1, len(names) // 32)
        shown = [name.split("_")[-1] for name in names[::every]]
        axis.set_ticks(range(0, len(names), every), shown, fontsize=7)
    ax.tick_params(axis="x", rotation=90)
    hidden = values.columns[0].startswith("hidden")
    ax.set(
        xlabel="hidden bit" if hidden else "unit of the other half",
        ylabel="unit",
        title="Couplings of the prior",
    )
    return ax


def _similar(rows: np.ndarray) -> np.ndarray:
    """An order in which similar rows stand side by side."""
    if len(rows) < 3:
        return np.arange(len(rows))
    from scipy.cluster.hierarchy import leaves_list, linkage

    return leaves_list(linkage(rows, "average", optimal_ordering=True))
