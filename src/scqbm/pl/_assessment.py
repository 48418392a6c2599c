"""Samplers compared: error against cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scqbm.pl._axes import new_axes, plot

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@plot
def assessment(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the error of samplers against their cost.

    The error is that of the second moments, divided by the error of as many independent draws:
    1, the grey line, is as good as exact. The cost is in seconds per effective draw.

    Parameters
    ----------
    table
        What :func:`scqbm.samplers.assess` returned. Tables of several samplers are joined by
        ``pandas.concat``.
    ax
        Where to draw. By default the Axes of a new figure.

    Returns
    -------
    The Axes.

    Examples
    --------
    >>> scqbm.pl.assessment(scqbm.samplers.assess(sampler, rbm))
    """
    if ax is None:
        ax = new_axes(5, 4)
    for name, rows in table.groupby("sampler", sort=False):
        x, y = rows["seconds_per_effective"], rows["error_2"] / rows["floor_2"]
        ax.plot(x, y, "o", label=name)
    ax.axhline(1, color="0.6", linewidth=1, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel="seconds per effective draw")
    ax.set_ylabel("error of second moments / that of independent draws")
    ax.legend(frameon=False)
    return ax
