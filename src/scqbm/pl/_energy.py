"""Prior energy of groups of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scqbm._checks import column
from scqbm.pl._axes import new_axes, plot

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@plot
def energy_by_group(
    adata: AnnData, group_key: str, energy_key: str = "prior_energy", ax: Axes | None = None
) -> Axes:
    """Plot the prior energy of each group of cells as boxes, the lowest median on top.

    The energy is low for codes that are common under the prior.

    Parameters
    ----------
    adata
        The cells.
    group_key
        Column of ``adata.obs`` with the groups, such as cell types. Cells without one are left
        out.
    energy_key
        Column of ``adata.obs`` with the energies, from :meth:`scqbm.QBMVI.get_prior_energy`.
    ax
        Where to draw. By default the Axes of a new figure.

    Returns
    -------
    The Axes.

    Examples
    --------
    >>> adata.obs["prior_energy"] = model.get_prior_energy()
    >>> scqbm.pl.energy_by_group(adata, "cell_type")
    """
    column(adata, "group_key", group_key)
    column(adata, "energy_key", energy_key)
    medians = adata.obs.groupby(group_key, observed=True)[energy_key].median().sort_values()
    if ax is None:
        ax = new_axes(6, 1.5 + 0.3 * len(medians))
    import seaborn as sns  # comes with scanpy

    sns.boxplot(
        adata.obs, x=energy_key, y=group_key, order=medians.index, fliersize=1, orient="h", ax=ax
    )
    ax.set(xlabel="prior energy (low: common under the prior)", ylabel="")
    return ax
