"""What the units of a code do to the genes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.module._constants import MODULE_KEYS
from torch import Tensor
from tqdm.auto import tqdm

from scqbm import _checks

if TYPE_CHECKING:  # what the mixin is mixed into
    from scqbm.model._prior_mixin import BoltzmannPriorMixin as _Model
else:
    _Model = object

_LEAST_SHARE = 1e-6  # of a cell's counts, added to both sides of a ratio


class ProgramsMixin(_Model):
    """Methods of a model that read the units of its code as gene programs."""

    @torch.inference_mode()
    def get_programs(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        units: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        n_genes: int | None = 50,
        labels_key: str | None = None,
        n_cells: int = 500,
        seed: int = 0,
        silent: bool = False,
    ) -> pd.DataFrame:
        """The genes that each unit of the code turns up or down.

        Each cell is decoded twice: with the unit at 1 and with the unit at 0. The other units are
        a draw from the cell's posterior, and its batch and covariates stay. The effect is the
        mean log2 ratio of the expected expression. A unit of a continuous code changes from one
        standard deviation below its mean over the cells to one above.

        Parameters
        ----------
        adata
            The cells, with the genes of the training data; the training data by default.
        indices
            Positions of the cells, or a Boolean mask; all by default.
        units
            Which units, all by default. A dict from names to lists of units changes the units of
            each list together.
        n_genes
            How many genes to keep of each unit, those of the largest effects; ``None`` keeps all.
        labels_key
            Column of ``obs`` with cell types: adds ``cell_type``, the type with the largest mean
            of the unit, ``use``, that mean, and ``use_elsewhere``, the mean over all other cells.
        n_cells
            At most this many random cells.
        seed
            Seed of the choice of cells and of the draws.
        silent
            Whether to show no progress bar.

        Returns
        -------
        Tidy table, the largest effects of each unit first: ``source`` (the unit), ``target`` (the
        gene), ``weight`` (the effect) and ``rank``. decoupler reads it as it is; for gseapy,
        ``dict(table.groupby("source")["target"].agg(list))``.

        Examples
        --------
        >>> programs = model.get_programs(labels_key="cell_type")
        >>> programs[programs["source"] == "unit_3"].head(10)
        """
        _checks.whole("n_cells", n_cells)
        if n_genes is not None:
            _checks.whole("n_genes", n_genes)
        self._check_if_trained(warn=False)
        groups = self._groups(units)
        self._need_cells_for("get_programs")
        adata = self._validate_anndata(adata)
        if labels_key is not None:
            _checks.column(adata, "labels_key", labels_key)
        cells = np.arange(adata.n_obs)
        if indices is not None:
            cells = _checks.which_cells(adata.n_obs, indices)
        if len(cells) == 0:
            raise ValueError("`indices` names no cells.")
        some = np.sort(
            np.random.default_rng(seed).choice(cells, min(n_cells, len(cells)), replace=False)
        )
        codes = self.get_latent_representation(adata, cells)
        effects = self._effects(adata, some, groups, codes, seed, silent)
        parts = []
        for (name, _), effect in zip(groups.items(), effects, strict=True):
            top = np.argsort(-np.abs(effect), kind="stable")[:n_genes]
            parts.append(
                pd.DataFrame(
                    {
                        "source": name,
                        "target": adata.var_names.to_numpy()[top],
                        "weight": effect[top],
                        "rank": np.arange(1, len(top) + 1),
                    }
                )
            )
        table = pd.concat(parts, ignore_index=True)
        if labels_key is not None:
            labels = adata.obs[labels_key].to_numpy()[cells]
            table = table.merge(_use(codes, labels, groups), on="source", how="left")
        return table

    def get_couplings(self, n: int | None = 50) -> pd.DataFrame:
        """The strongest couplings of the prior: which units tend to have the same value.

        Parameters
        ----------
        n
            How many; ``None`` gives all.

        Returns
        -------
        Tidy table, the strongest first: ``unit`` and ``other`` (names of units of the code, or of
        hidden bits) and ``coupling``. Positive: the two tend to have the same value. Negative:
        opposite values.
        """
        if n is not None:
            _checks.whole("n", n)
        prior = self._prior()
        W = prior.rbm().W.cpu().numpy()
        n_visible, n_hidden = W.shape
        if prior.layers(torch.zeros(1, prior.n_latent))[1] is None:
            others = [f"hidden_{j}" for j in range(n_hidden)]
        else:
            others = [f"unit_{n_visible + j}" for j in range(n_hidden)]
        rows, columns = np.unravel_index(np.argsort(-np.abs(W), axis=None, kind="stable"), W.shape)
        rows, columns = rows[:n], columns[:n]
        return pd.DataFrame(
            {
                "unit": [f"unit_{i}" for i in rows],
                "other": [others[j] for j in columns],
                "coupling": W[rows, columns],
            }
        )

    def _groups(
        self, units: Sequence[int] | Mapping[str, Sequence[int]] | None
    ) -> dict[str, list[int]]:
        """Names of what changes together, and the units in it."""
        n = self._prior().n_latent
        if units is None:
            units = range(n)
        listed = units.values() if isinstance(units, Mapping) else [units]
        if not all(isinstance(some, Iterable) and not isinstance(some, str) for some in listed):
            raise ValueError(
                "`units` must be a list of units, or a dict from names to such lists."
            )
        groups = dict(units) if isinstance(units, Mapping) else {f"unit_{i}": [i] for i in units}
        for members in groups.values():
            for unit in members:
                whole = isinstance(unit, int | np.integer) and not isinstance(unit, bool)
                if not whole or not 0 <= unit < n:
                    raise ValueError(f"`units` must name units from 0 to {n - 1}, not {unit!r}.")
        if not groups or not all(groups.values()):
            raise ValueError("`units` names no units.")
        return {name: [int(i) for i in members] for name, members in groups.items()}

    def _effects(
        self,
        adata: AnnData,
        cells: np.ndarray,
        groups: dict[str, list[int]],
        codes: np.ndarray,
        seed: int,
        silent: bool,
    ) -> np.ndarray:
        """Mean log2 ratio of each group (rows) in each gene (columns)."""
        low, high = np.zeros(codes.shape[1]), np.ones(codes.shape[1])
        if self._prior().rbm().gaussian:
            low, high = codes.mean(0) - codes.std(0), codes.mean(0) + codes.std(0)
        low, high = (torch.as_tensor(x, dtype=torch.float32) for x in (low, high))
        total = np.zeros((len(groups), adata.n_vars))
        loader = self._make_data_loader(adata=adata, indices=cells, batch_size=256)
        with (
            torch.random.fork_rng(),
            tqdm(total=len(groups) * len(cells), desc="Programs", disable=silent) as bar,
        ):
            torch.manual_seed(seed)
            for tensors in loader:
                tensors = {k: x.to(self.device) for k, x in tensors.items() if x is not None}
                outputs = self.module.inference(**self.module._get_inference_input(tensors))
                z = outputs[MODULE_KEYS.QZ_KEY].sample()
                for row, effect in enumerate(
                    self._contrasts(tensors, outputs, z, list(groups.values()), low, high)
                ):
                    total[row] += effect
                    bar.update(len(z))
        return total / len(cells)

    def _contrasts(
        self,
        tensors: dict[str, Tensor],
        outputs: dict,
        z: Tensor,
        groups: list[list[int]],
        low: Tensor,
        high: Tensor,
    ) -> Iterator[np.ndarray]:
        """Summed over the cells of a minibatch, one group after the other."""
        for members in groups:
            logs = []
            for values in (high, low):
                changed = z.clone()
                changed[:, members] = values[members].to(z)
                given = self.module._get_generative_input(
                    tensors, outputs | {MODULE_KEYS.Z_KEY: changed}
                )
                px = self.module.generative(**given)[MODULE_KEYS.PX_KEY]
                logs.append((px.get_normalized("scale") + _LEAST_SHARE).log2())
            yield (logs[0] - logs[1]).sum(0).cpu().numpy()


def _use(codes: np.ndarray, labels: np.ndarray, groups: dict[str, list[int]]) -> pd.DataFrame:
    """Which cell type uses each group of units most."""
    known = ~pd.isna(labels)
    codes, labels = codes[known], labels[known].astype(str)
    names = np.unique(labels)
    if len(names) == 0:
        return pd.DataFrame({"source": list(groups)}).assign(
            cell_type=None, use=np.nan, use_elsewhere=np.nan
        )
    rows = []
    for name, members in groups.items():
        of_cell = codes[:, members].mean(1)
        means = [of_cell[labels == label].mean() for label in names]
        best = names[int(np.argmax(means))]
        others = labels != best
        elsewhere = of_cell[others].mean() if others.any() else np.nan
        rows.append((name, best, max(means), elsewhere))
    return pd.DataFrame(rows, columns=["source", "cell_type", "use", "use_elsewhere"])


def match_programs(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """For each program, the most similar one of another model.

    Parameters
    ----------
    a, b
        Tables of :meth:`scqbm.QBMVI.get_programs`, best with ``n_genes=None``.

    Returns
    -------
    One row for each program of ``a``: ``source``, ``match`` (of ``b``) and ``similarity``, the
    absolute correlation of their effects over all genes; a gene that one table lacks counts as 0
    there. The sign of a unit means nothing: 0 and 1 can change places.
    """
    for name, table in (("a", a), ("b", b)):
        missing = sorted({"source", "target", "weight"} - set(table))
        if missing:
            raise ValueError(
                f"`{name}` must be a table of get_programs, but has no {' and no '.join(missing)}."
            )
    weights = [
        table.pivot_table(index="source", columns="target", values="weight", sort=False)
        for table in (a, b)
    ]
    genes = weights[0].columns.union(weights[1].columns)
    one, other = (_standardised(w.reindex(columns=genes).fillna(0.0)) for w in weights)
    similarity = np.abs(one @ other.T)
    best = similarity.argmax(1)
    return pd.DataFrame(
        {
            "source": weights[0].index,
            "match": weights[1].index[best],
            "similarity": similarity.max(1),
        }
    )


def _standardised(weights: pd.DataFrame) -> np.ndarray:
    values = weights.to_numpy()
    values = values - values.mean(1, keepdims=True)
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norm > 0, norm, 1)
