"""The prior's landscape: its basins as a graph, and the tree in which they merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scqbm.pl._axes import new_axes, plot

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@plot
def landscape(landscape: AnnData, color: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot the basins of a prior as a graph.

    The area of a circle grows with the number of cells, and its colour shows the energy, or the
    categories of ``color``. The lines are the lowest ways that connect all basins. A line is the
    thicker, the less the energy must rise on the way from the shallower basin to the other.

    Parameters
    ----------
    landscape
        From :meth:`scqbm.QBMVI.get_landscape`.
    color
        Column of ``landscape.obs``, such as ``"label"``; the energy by default.
    ax
        Where to draw. By default the Axes of a new figure.

    Returns
    -------
    The Axes.

    Examples
    --------
    >>> scqbm.pl.landscape(model.get_landscape(labels_key="cell_type"), color="label")
    """
    _check(landscape)
    if color is not None and color not in landscape.obs:
        raise ValueError(
            f"`color` must be a column of landscape.obs ({list(landscape.obs)}), not {color!r}."
        )
    import networkx as nx
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    obs = landscape.obs
    # by height and not by climb: a shallow basin is an easy climb away from all others
    heights = landscape.obsp["barriers"]
    graph = nx.minimum_spanning_tree(nx.from_scipy_sparse_array(heights))
    strength = landscape.obsp["connectivities"].toarray()
    for i, j, data in graph.edges(data=True):
        data["weight"] = strength[i, j]
    places = nx.kamada_kawai_layout(graph, weight=None)  # all lines alike: circles stay apart
    xy = np.array([places[i] for i in range(len(obs))]).reshape(-1, 2)
    if ax is None:
        ax = new_axes(7, 5)
    for i, j, data in graph.edges(data=True):
        ax.plot(*xy[[i, j]].T, color="0.6", linewidth=1 + 4 * data["weight"], zorder=1)
    share = obs["n_cells"].to_numpy() / max(obs["n_cells"].sum(), 1)
    sizes = 40 + 2500 * share
    if color is None or pd.api.types.is_numeric_dtype(obs[color]):
        key = color or "energy"
        known = obs[key][np.isfinite(obs[key])]
        finite = obs[key].replace(np.inf, known.max() if len(known) else 0.0)
        shades = colormaps["viridis"].with_extremes(bad="lightgrey")  # of basins without a value
        dots = ax.scatter(
            xy[:, 0],
            xy[:, 1],
            s=sizes,
            c=finite,
            cmap=shades,
            plotnonfinite=True,
            edgecolor="black",
            zorder=2,
        )
        ax.figure.colorbar(dots, ax=ax, label=key, shrink=0.7)
    else:
        groups = obs[color].astype(object).where(obs[color].notna(), "no label").astype(str)
        for name, shade in zip(pd.unique(groups), _shades(groups.nunique()), strict=True):
            some = (groups == name).to_numpy()
            ax.scatter(
                xy[some, 0], xy[some, 1], s=sizes[some], color=shade, edgecolor="black", zorder=2
            )
            ax.scatter([], [], s=40, color=shade, edgecolor="black", label=name)
        ax.legend(title=color, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for name, place in zip(landscape.obs_names, xy, strict=True):
        text = ax.annotate(name, (place[0], place[1]), ha="center", va="center", zorder=3)
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    ax.set(xticks=[], yticks=[], title="Basins of the prior")
    ax.margins(0.15)
    return ax


@plot
def merge_tree(landscape: AnnData, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot in which order, and at which energy, the basins of a prior merge.

    Each basin is a vertical line that begins at its lowest energy. Where it ends, a horizontal
    line leads to the deeper basin that it merges into.

    Parameters
    ----------
    landscape
        From :meth:`scqbm.QBMVI.get_landscape`.
    label
        Column of ``landscape.obs`` that names the basins, such as ``"label"``, besides their
        numbers.
    ax
        Where to draw. By default the Axes of a new figure.

    Returns
    -------
    The Axes.

    Examples
    --------
    >>> scqbm.pl.merge_tree(landscape, label="label")
    """
    _check(landscape)
    if label is not None and label not in landscape.obs:
        raise ValueError(
            f"`label` must be a column of landscape.obs ({list(landscape.obs)}), not {label!r}."
        )
    tree, obs = landscape.uns["merge_tree"], landscape.obs
    into = dict(zip(tree.index, tree["into"], strict=True))
    heights = tree["at_energy"]
    children: dict[str, list[str]] = {name: [] for name in tree.index}
    roots: list[str] = []
    for name, parent in into.items():
        (children[parent] if parent else roots).append(name)
    order: list[str] = []

    def place(name: str) -> None:
        """A basin, and beside it those that merge into it, the lowest pass nearest."""
        order.append(name)
        for child in sorted(children[name], key=lambda c: heights[c]):
            place(child)

    for root in roots:
        place(root)
    x = {name: i for i, name in enumerate(order)}
    finite = heights[np.isfinite(heights)]
    spread = np.ptp([*finite, *obs["energy"]]) or 1.0
    top = max([*finite, *obs["energy"]]) + 0.08 * spread
    if ax is None:
        ax = new_axes(max(5.0, 1.5 + 0.45 * len(order)), 4.5)
    for name in order:
        end = heights[name] if np.isfinite(heights[name]) else top
        ax.plot([x[name]] * 2, [obs.loc[name, "energy"], end], color="#0072B2", linewidth=2)
        if into[name] and np.isfinite(heights[name]):
            ax.plot([x[into[name]], x[name]], [end, end], color="0.4", linewidth=1)
    names = list(order)
    if label is not None:
        said: Any = obs[label]
        names = [n if pd.isna(said[n]) else f"{n} {said[n]}" for n in order]
    ax.set_xticks(range(len(order)), names, rotation=0 if label is None else 90)
    ax.set(xlabel="basin", ylabel="energy", title="Merge tree of the basins")
    return ax


def _shades(n: int) -> list:
    """Colours that colour-blind readers can tell apart, as far as there are enough."""
    import seaborn as sns  # comes with scanpy

    return sns.color_palette("colorblind" if n <= 10 else "husl", n)


def _check(landscape: AnnData) -> None:
    if "merge_tree" not in landscape.uns or not {"barriers", "connectivities"} <= set(
        landscape.obsp
    ):
        raise ValueError("`landscape` must be an AnnData from get_landscape.")
