"""The prior's landscape with the cells in it: states, barriers, basins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor
from tqdm.auto import tqdm

from scqbm import _checks
from scqbm.ising import RBM
from scqbm.landscape import MergeTree, PairEnergy, barriers, merge_tree
from scqbm.prior import Prior

if TYPE_CHECKING:  # what the mixin is mixed into
    from scqbm.model._prior_mixin import BoltzmannPriorMixin as _Model
else:
    _Model = object

_NEIGHBOURS = 30  # states to which paths are tried from each state
_MOST_STATES = 2000  # the visits of rarer ones go to the most similar of these
_PAIRS_AT_A_TIME = 2000


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
        tree = _tree(energy, states, silent)
        landscape = _as_anndata(
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


def _tree(energy: PairEnergy, states: Tensor, silent: bool) -> MergeTree:
    """Merge tree of the states, by the paths between neighbours."""
    values = energy.energy(states)
    pairs = _neighbours(states, values)
    heights = []
    chunks = pairs.split(_PAIRS_AT_A_TIME)
    hide = silent or len(chunks) < 2
    for some in tqdm(chunks, desc="Paths between states", disable=hide):
        heights.append(barriers(energy, states, some))
    height = torch.cat(heights).cpu().numpy() if heights else np.zeros(0)
    return merge_tree(values.cpu().numpy().astype(float), pairs.cpu().numpy(), height)


def _neighbours(states: Tensor, values: Tensor) -> Tensor:
    """Pairs of similar states; each but the lowest also with the most similar one below it."""
    n = len(states)
    pairs = set()
    order = torch.argsort(values, stable=True)
    ranked = states[order]
    for start in range(0, n, 500):
        rows = torch.arange(start, min(start + 500, n))
        apart = torch.cdist(ranked[rows.to(states.device)], ranked, p=1).cpu()
        apart[torch.arange(len(rows)), rows] = torch.inf
        for others in apart.topk(min(_NEIGHBOURS, n - 1), largest=False).indices.T:
            pairs |= set(zip(rows.tolist(), others.tolist(), strict=True))
        above = torch.arange(n) >= rows.unsqueeze(1)
        below = apart.masked_fill(above, torch.inf).argmin(1)
        pairs |= {(i, j) for i, j in zip(rows.tolist(), below.tolist(), strict=True) if i > 0}
    unique = sorted({(max(i, j), min(i, j)) for i, j in pairs if i != j})
    return order[torch.tensor(unique, dtype=torch.long, device=order.device).reshape(-1, 2)]


def _as_anndata(
    prior: Prior,
    rbm: RBM,
    energy: PairEnergy,
    states: Tensor,
    tree: MergeTree,
    visits: np.ndarray,
    n_cells: int,
    resolution: float,
    min_cells: int,
) -> AnnData:
    counts = np.bincount(visits[:n_cells], minlength=len(states))
    belongs = tree.cut(resolution, counts, min_cells)
    of_cells, of_draws = belongs[visits[:n_cells]], belongs[visits[n_cells:]]
    deepest = np.unique(belongs)
    n = np.array([(of_cells == state).sum() for state in deepest])
    mass = np.array([(of_draws == state).mean() for state in deepest])
    order = np.lexsort((tree.energy[deepest], -mass, -n))
    deepest, n, mass = deepest[order], n[order], mass[order]
    names = pd.Index([str(i) for i in range(len(deepest))])
    some = torch.as_tensor(deepest, device=states.device)
    code = _code(states[some], prior, rbm).cpu().numpy()
    into, leaving = _ways_out(tree, belongs, deepest)
    landscape = AnnData(
        code.astype(np.float32),
        obs=pd.DataFrame(
            {
                "energy": tree.energy[deepest],
                "depth": leaving - tree.energy[deepest],
                "mass": mass,
                "n_cells": n,
            },
            index=names,
        ),
        var=pd.DataFrame(index=[f"unit_{i}" for i in range(code.shape[1])]),
    )
    # between the deepest states of the basins: paths anew, then the lowest way over the others
    near = _neighbours(states[some], energy.energy(states[some]))
    pairs = torch.combinations(torch.arange(len(deepest)))
    paths = np.full((len(deepest),) * 2, np.inf)
    i, j = near.cpu().numpy().T
    paths[i, j] = paths[j, i] = barriers(energy, states[some], near).cpu().numpy()
    height = paths[tuple(pairs.numpy().T)]
    height = _lowest_ways(len(deepest), pairs.numpy(), height, tree, deepest)
    lowest = tree.energy.min()
    one, other = pairs.numpy().T
    climb = height - np.maximum(tree.energy[deepest][one], tree.energy[deepest][other])
    for key, values in (
        ("barriers", np.maximum(height - lowest, 1e-12)),  # so that no barrier reads as none
        ("connectivities", np.exp(-np.maximum(climb, 0))),
    ):
        upper = sparse.coo_matrix((values, (one, other)), (len(deepest),) * 2)
        landscape.obsp[key] = (upper + upper.T).tocsr()
    position = {state: name for state, name in zip(deepest, names, strict=True)}
    landscape.uns["merge_tree"] = pd.DataFrame(
        {
            "into": [position.get(state, "") for state in into],
            "at_energy": leaving,
        },
        index=names,
    )
    landscape.uns["resolution"] = float(resolution)
    landscape.uns["cells"] = np.array([position[state] for state in of_cells])
    return landscape


def _ways_out(
    tree: MergeTree, belongs: np.ndarray, deepest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which basin each one merges into, -1 if none, and the highest pass on the way there."""
    into, leaving = np.full(len(deepest), -1), np.full(len(deepest), np.inf)
    for k, state in enumerate(deepest):
        top, above = tree.height[state], tree.parent[state]
        while above >= 0 and belongs[above] != above:  # a basin that has merged away
            top, above = max(top, tree.height[above]), tree.parent[above]
        if above >= 0:
            into[k], leaving[k] = above, top
    return into, leaving


def _lowest_ways(
    n: int, pairs: np.ndarray, height: np.ndarray, tree: MergeTree, deepest: np.ndarray
) -> np.ndarray:
    """A path may be higher than the way that the merge tree knows of: then that one counts."""
    known = np.full(len(height), np.inf)
    ways = []
    for state in deepest:  # the states above each, with the highest pass on the way
        way, top = {state: -np.inf}, -np.inf
        while tree.parent[state] >= 0:
            top = max(top, tree.height[state])
            state = tree.parent[state]
            way[state] = top
        ways.append(way)
    for k, (i, j) in enumerate(pairs):
        common = ways[i].keys() & ways[j].keys()
        known[k] = min((max(ways[i][s], ways[j][s]) for s in common), default=np.inf)
    return np.minimum(height, known)


def _code(bits: Tensor, prior: Prior, rbm: RBM) -> Tensor:
    """The code that a state stands for; real numbers are where the hidden bits want them."""
    if rbm.gaussian:
        return rbm.visible_field(bits)
    visible, hidden = bits.split([rbm.n_visible, rbm.n_hidden], 1)
    return prior.code(visible, hidden)


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
