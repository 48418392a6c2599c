"""Scores of integration as a picture of their table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scqbm.pl._axes import new_axes, plot

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

GROUPS = {"bio": "Bio conservation", "batch": "Batch correction", "aggregate": "Aggregate score"}


@plot
def integration(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot scores of integration: metrics as circles, averages as bars, the best method on top.

    The colours of a metric compare the methods: green is high and purple is low.

    Parameters
    ----------
    table
        What :func:`scqbm.benchmark.integration` returned. A metric that is not defined for all
        methods is not drawn, as it is not part of the averages.
    ax
        Where to draw. By default the Axes of a new figure.

    Returns
    -------
    The Axes.

    Examples
    --------
    >>> table = scqbm.benchmark.integration(adata, "batch", "cell_type", {"QBMVI": model})
    >>> scqbm.pl.integration(table)
    """
    table = table[table["group"].isin(GROUPS)]
    if table.empty:
        raise ValueError("`table` must hold scores of scqbm.benchmark.integration.")
    group = table.drop_duplicates("metric").set_index("metric")["group"]
    wide = table.pivot(index="method", columns="metric", values="value")[group.index]
    wide = wide.loc[table["method"].drop_duplicates()].dropna(axis=1)
    group = group[wide.columns]
    averages = group.index[group == "aggregate"]
    if len(averages):  # the Total, or without batches the only average
        wide = wide.sort_values(averages[-1], ascending=False, kind="stable")
    if ax is None:
        ax = new_axes(1.5 + 0.9 * wide.shape[1], 1.2 + 0.5 * len(wide))
    for x, (metric, scores) in enumerate(wide.items()):
        draw = _bars if metric in averages else _circles
        draw(ax, x, scores.to_numpy(float))
    _frame(ax, wide, group)
    return ax


def _circles(ax: Axes, x: int, scores: np.ndarray) -> None:
    from matplotlib import colormaps

    spread = 5 * scores.std() or 1.0
    colours = colormaps["PRGn"](0.5 + (scores - np.median(scores)) / spread)
    ax.scatter(np.full(len(scores), x), range(len(scores)), 600, color=colours)
    for y, (score, colour) in enumerate(zip(scores, colours, strict=True)):
        dark = colour[:3] @ [0.3, 0.6, 0.1] < 0.5
        text = "white" if dark else "black"
        ax.text(x, y, f"{score:.2f}", ha="center", va="center", fontsize=9, color=text)


def _bars(ax: Axes, x: int, scores: np.ndarray) -> None:
    """Bars that fill their column at a score of 1."""
    from matplotlib import colormaps

    left, width = x - 0.45, 0.9
    ys, colours = np.arange(len(scores)), colormaps["YlGnBu"](0.15 + 0.6 * scores)
    ax.barh(ys, width * scores.clip(0), 0.6, left, color=colours)
    for y, score in enumerate(scores):
        ax.text(left + 0.05, y, f"{score:.2f}", ha="left", va="center", fontsize=9)


def _frame(ax: Axes, wide: pd.DataFrame, group: pd.Series) -> None:
    """Names of methods at the left; names of metrics and of their groups on top."""
    n_methods, n_metrics = wide.shape
    ax.set(xlim=(-0.6, n_metrics - 0.4), ylim=(n_methods - 0.4, -0.6))  # the first on top
    ax.set_yticks(range(n_methods), wide.index, weight="bold")
    ax.set_xticks(range(n_metrics), [m.replace(" ", "\n", 1) for m in wide.columns], fontsize=9)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for y in range(1, n_methods):
        ax.axhline(y - 0.5, color="0.7", linewidth=1, linestyle=(0, (1, 5)), zorder=0)
    for name, title in GROUPS.items():
        (places,) = np.nonzero((group == name).to_numpy())
        if not len(places):
            continue
        above: Any = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
        middle = (places[0] + places[-1]) / 2
        ax.annotate(title, (middle, 1), (0, 36), ha="center", weight="bold", **above)
        if places[0] > 0:
            ax.axvline(places[0] - 0.5, color="0.7", linewidth=1, zorder=0)
