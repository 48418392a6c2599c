"""Embeddings of the same cells, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scqbm.pl._axes import new_axes, plot

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@plot
def embeddings(
    adata: AnnData,
    bases: Mapping[str, str] | Sequence[str],
    color: str,
    ax: Axes | Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot embeddings in two dimensions side by side, in the same colours and with one legend.

    Parameters
    ----------
    adata
        The cells. As in scanpy, the colours of categories are kept in ``adata.uns``.
    bases
        Keys of ``adata.obsm``, one for each panel. A dict names the panels: from a name to a key.
    color
        Column of ``adata.obs``, or a gene.
    ax
        Where to draw: one Axes for each panel. By default those of a new figure.

    Returns
    -------
    The Axes, one for each panel.

    Examples
    --------
    >>> scqbm.pl.embeddings(adata, {"QBMVI": "umap_qbmvi", "SCVI": "umap_scvi"}, "batch")
    """
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, Mapping):
        bases = {key: key for key in bases}
    for key in bases.values():
        if key not in adata.obsm:
            raise ValueError(
                f"`bases` must be keys of adata.obsm ({list(adata.obsm)}), not {key!r}."
            )
    if color not in adata.obs and color not in adata.var_names:
        raise ValueError(f"`color` must be a column of adata.obs or a gene, not {color!r}.")
    given: Any = new_axes(5.5 * len(bases), 4.5, len(bases)) if ax is None else ax
    axes = np.ravel(given)
    if len(axes) != len(bases):
        raise ValueError(
            f"`ax` must hold one Axes for each of the {len(bases)} embeddings, not {len(axes)}."
        )
    import scanpy as sc

    for panel, (name, key) in zip(axes, bases.items(), strict=True):
        last = panel is axes[-1]
        sc.pl.embedding(
            adata,
            key,
            color=color,
            title=f"{name}, {color}",
            legend_loc="right margin" if last else None,
            colorbar_loc="right" if last else None,
            frameon=False,
            ax=panel,
            show=False,
        )
    return list(axes)
