"""The prior's landscape with the cells in it: states, barriers, basins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scqbm import _checks
from scqbm.landscape import PairEnergy
from scqbm.model._basins import as_anndata, tree_of
from scqbm.prior import Prior

if TYPE_CHECKING:  # what the mixin is mixed into
    from scqbm.model._prior_mixin import BoltzmannPriorMixin as _Model
else:
    _Model = object

_MOST_STATES = 2000  # the visits of rarer ones go to the most similar of these


class LandscapeMixin(_Model):
    """Methods of a model that read its prior as an energy landscape."""

    def get_landscape(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        dataloader: Iterable[dict[str, Tensor]] | None = None,
        *,
        resolution: float = 0.3,
        min_cells: int | None = None,
        labels_key: str | None = None,
        key_added: str | None = "basin",
        n_samples: int = 2000,
        seed: int = 0,
        silent: bool = False,
    ) -> AnnData:
        """The states of the prior and the barriers between them; the cells' basins go to ``obs``.

        A state is a code, with the hidden bits, whose energy no single flip of a bit lowers. Each
        cell's most probable code runs down to one. Draws from the prior do the same and show how
        probable each state's surroundings are. States that a low barrier separates are merged.

        Parameters
        ----------
        adata
            The cells, with the genes of the training data; the training data by default.
        indices
            Positions of the cells, or a Boolean mask; all by default.
        batch_size
            Cells at a time; ``scvi.settings.batch_size`` by default.
        dataloader
            Minibatches in the place of ``adata``, as dictionaries of tensors.
        resolution
            Least depth of a basin, in units of the temperature: how far the energy must rise on
            the way out to a deeper one. 0 keeps every state apart.
        min_cells
            A basin with fewer cells joins the deeper one that it would merge into. 0 keeps them;
            the default is 10, or a hundredth of the cells if those are fewer.
        labels_key
            Column of ``obs`` with cell types, to name the most frequent type of each basin.
        key_added
            Column of ``adata.obs`` for the basin of each cell; ``None`` leaves ``adata`` alone.
        n_samples
            Draws from the prior.
        seed
            Seed of the draws.
        silent
            Whether to show no progress bar.

        Returns
        -------
        One row a basin, those with most cells first, named ``"0"``, ``"1"`` and so on:

        - ``X``: the code of its deepest state;
        - ``obs``: ``energy`` of that state, ``depth`` (infinite for the deepest), ``mass`` (its
          share of the draws), ``n_cells``, and with ``labels_key`` the most frequent ``label`` and
          its ``label_share``;
        - ``obsp["barriers"]``: the lowest height found between two basins, above the lowest state.
          ``obsp["connectivities"]``: exp(-climb) from the shallower of the two, for scanpy's
          graphs;
        - ``uns["cells"]``: the basin of each cell. ``uns["merge_tree"]``: into which basin each
          one merges, and at what energy.

        Examples
        --------
        >>> landscape = model.get_landscape(labels_key="cell_type")
        >>> scqbm.pl.landscape(landscape, color="label")
        """
        _checks.amount("resolution", resolution)
        if min_cells is not None:
            _checks.whole("min_cells", min_cells, 0)
        _checks.whole("n_samples", n_samples)
        _checks.name_or_none("key_added", key_added)
        self._check_if_trained(warn=False)
        if dataloader is None:
            self._need_cells("dataloader")
            cells = self._validate_anndata(adata)
            if labels_key is not None:
                _checks.column(cells, "labels_key", labels_key)
        elif labels_key is not None:
            raise ValueError("`labels_key` needs cells with `obs`: leave `dataloader`.")
        prior = self._prior()
        which = {"dataloader": dataloader} if dataloader is not None else {"adata": adata}
        if indices is not None and dataloader is None:
            indices = _checks.which_cells(cells.n_obs, indices)
            if len(indices) == 0:
                raise ValueError("`indices` names no cells.")
        if dataloader is None:
            which |= {"indices": indices, "batch_size": batch_size}
        codes = np.asarray(self.get_latent_representation(**which))
        rbm = prior.rbm()
        energy = PairEnergy.of(rbm)
        drawn = self._draw_codes(n_samples, None, seed)
        bits = torch.cat([_bits(torch.from_numpy(x).to(rbm.W), prior) for x in (codes, drawn)])
        states, visits = _states(energy, bits)
        if min_cells is None:
            min_cells = min(10, len(codes) // 100)
        tree = tree_of(energy, states, silent)
        landscape = as_anndata(
            prior, rbm, energy, states, tree, visits, len(codes), resolution, min_cells
        )
        basin = pd.Categorical(landscape.uns.pop("cells"), categories=landscape.obs_names)
        if dataloader is None:
            everyone = np.arange(cells.n_obs) if indices is None else indices
            landscape.uns["cells"] = pd.DataFrame(
                {"basin": basin}, index=cells.obs_names[everyone]
            )
            if labels_key is not None:
                labels = cells.obs[labels_key].to_numpy()[everyone]
                _name(landscape, np.asarray(basin), labels)
            if key_added is not None:
                column = pd.Series(index=cells.obs_names, dtype=object)
                column.iloc[everyone] = np.asarray(basin)
                used = [name for name in landscape.obs_names if (basin == name).any()]
                cells.obs[key_added] = pd.Categorical(column.to_numpy(), categories=used)
        else:
            landscape.uns["cells"] = pd.DataFrame({"basin": basin}).set_axis(
                [f"cell_{i}" for i in range(len(codes))]
            )
        return landscape


def _bits(codes: Tensor, prior: Prior) -> Tensor:
    """The most probable state of all bits, for the mean codes of cells or for draws."""
    rbm = prior.rbm()
    visible, hidden = prior.layers(codes)
    if not rbm.gaussian:
        visible = (visible > 0.5).to(rbm.W)
    if hidden is None:
        hidden = (rbm.hidden_field(visible) > 0).to(rbm.W)
    hidden = (hidden > 0.5).to(rbm.W)
    return hidden if rbm.gaussian else torch.cat([visible, hidden], 1)


def _states(energy: PairEnergy, bits: Tensor) -> tuple[Tensor, np.ndarray]:
    """Distinct states, and which of them each row runs down to."""
    found = energy.descend(bits)
    states, visits, counts = torch.unique(found, dim=0, return_inverse=True, return_counts=True)
    if len(states) > _MOST_STATES:
        keep = counts.argsort(descending=True, stable=True)[:_MOST_STATES]
        kept = states[keep]
        nearest = torch.cat(
            [torch.cdist(some, kept, p=1).argmin(1) for some in states.split(1000)]
        )
        states, visits = kept, nearest[visits]
    return states, visits.cpu().numpy()


def _name(landscape: AnnData, basin: np.ndarray, labels: np.ndarray) -> None:
    """The most frequent label of each basin and its share."""
    known = ~pd.isna(labels)
    table = pd.crosstab(basin[known], labels[known].astype(str))
    table = table.reindex(landscape.obs_names, fill_value=0)
    total = table.sum(1)
    if table.shape[1] == 0:
        landscape.obs["label"], landscape.obs["label_share"] = (
            pd.Categorical([None] * len(table)),
            np.nan,
        )
        return
    label = table.idxmax(1).where(total > 0)
    landscape.obs["label"] = pd.Categorical(label)
    landscape.obs["label_share"] = (table.max(1) / total.where(total > 0)).to_numpy()
