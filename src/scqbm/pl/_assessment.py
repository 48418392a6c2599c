"""Samplers compared: error against cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def assessment(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Error of second moments over its floor against seconds an effective draw.

    Parameters
    ----------
    table
        Rows of :func:`assess`, concatenated.
    ax
        Where to draw; a new figure by default.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    for name, rows in table.groupby("sampler", sort=False):
        x, y = rows["seconds_per_effective"], rows["error_2"] / rows["floor_2"]
        ax.plot(x, y, "o", label=name)
    ax.axhline(1, color="0.6", linewidth=1, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel="seconds an effective draw")
    ax.set_ylabel("error of second moments / that of independent draws")
    ax.legend(frameon=False)
    return ax
