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
from scqbm.model._programs import independent_programs

if TYPE_CHECKING:  # what the mixin is mixed into
    from scqbm.model._prior_mixin import BoltzmannPriorMixin as _Model
else:
    _Model = object

_LEAST_SHARE = 1e-6  # of a cell's counts, added to both sides of a ratio
_LEAST_RANGE = 1e-6  # of a unit that is the same in all cells


class ProgramsMixin(_Model):
    """Methods of a model that read the units of its code as gene programs."""

    @torch.inference_mode()
    def get_programs(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        units: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        n_programs: int | None = None,
        n_genes: int | None = 50,
        labels_key: str | None = None,
        key_added: str | None = None,
        n_cells: int = 500,
        seed: int = 0,
        silent: bool = False,
    ) -> pd.DataFrame:
        """The genes that each unit of the code, or each program of many units, turns up or down.

        Each cell is decoded twice: with the unit at 1 and with the unit at 0. The other units are
        a draw from the cell's posterior, and its batch and covariates stay. The effect is the
        mean log2 ratio of the expected expression. A unit of a continuous code changes from one
        standard deviation below its mean over the cells to one above.

        Units differ from one training to the next. Programs of many units (``n_programs``) differ
        much less: they are the independent components of what all units together do to the genes
        in the cells. The effect of such a program is the change in log2 expression where a cell's
        score rises by one standard deviation.

        Parameters
        ----------
        adata
            The cells, with the genes of the training data; the training data by default.
        indices
            Positions of the cells, or a Boolean mask; all by default.
        units
            Which units, all by default. A dict from names to lists of units changes the units of
            each list together.
        n_programs
            Return so many programs of all units instead, the strongest first; 15 is a good start.
            There are fewer if the units do fewer different things.
        n_genes
            How many genes to keep of each unit, those of the largest effects; ``None`` keeps all.
        labels_key
            Column of ``obs`` with cell types: adds ``cell_type``, the type with the largest mean
            of the unit or score, ``use``, that mean, and ``use_elsewhere``, the mean over all
            other cells.
        key_added
            With ``n_programs``: key of ``obsm`` under which each cell's scores are stored.
        n_cells
            At most this many random cells are decoded.
        seed
            Seed of the choice of cells, of the draws and of the programs.
        silent
            Whether to show no progress bar.

        Returns
        -------
        Tidy table, the largest effects of each unit first: ``source`` (the unit or program),
        ``target`` (the gene), ``weight`` (the effect) and ``rank``. decoupler reads it as it is;
        for gseapy, ``dict(table.groupby("source")["target"].agg(list))``.

        Examples
        --------
        >>> programs = model.get_programs(labels_key="cell_type")
        >>> programs[programs["source"] == "unit_3"].head(10)
        >>> programs = model.get_programs(n_programs=15, key_added="programs")
        >>> programs[programs["source"] == "program_0"].head(10)
        """
        _checks.whole("n_cells", n_cells)
        if n_genes is not None:
            _checks.whole("n_genes", n_genes)
        _checks.name_or_none("key_added", key_added)
        self._check_if_trained(warn=False)
        groups = self._groups(units)
        if n_programs is not None:
            _checks.whole("n_programs", n_programs)
            if units is not None:
                raise ValueError("`n_programs` makes programs of all units: leave out `units`.")
            if n_programs > len(groups):
                raise ValueError(
                    f"`n_programs` must be at most {len(groups)}, the number of units, not "
                    f"{n_programs}."
                )
        if key_added is not None and n_programs is None:
            raise ValueError("`key_added` stores scores of programs: it needs `n_programs`.")
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
        low, high = self._range_of(codes)
        effects = self._effects(adata, some, groups, low, high, seed, silent)
        uses = pd.DataFrame({name: codes[:, members].mean(1) for name, members in groups.items()})
        if n_programs is not None:
            values = codes / (high - low).clip(min=_LEAST_RANGE)
            scores, effects = independent_programs(values, effects, n_programs, seed)
            uses = pd.DataFrame(scores, columns=[f"program_{i}" for i in range(len(effects))])
        if key_added is not None:
            every = pd.DataFrame(np.nan, adata.obs_names, uses.columns)
            every.iloc[cells] = uses.to_numpy()
            adata.obsm[key_added] = every
        parts = []
        for name, effect in zip(uses, effects, strict=True):
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
            table = table.merge(_use(uses, labels), on="source", how="left")
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

    def _range_of(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Between which two values a unit is changed."""
        if self._prior().rbm().gaussian:
            return codes.mean(0) - codes.std(0), codes.mean(0) + codes.std(0)
        return np.zeros(codes.shape[1]), np.ones(codes.shape[1])

    def _effects(
        self,
        adata: AnnData,
        cells: np.ndarray,
        groups: dict[str, list[int]],
        low: np.ndarray,
        high: np.ndarray,
        seed: int,
        silent: bool,
    ) -> np.ndarray:
        """Mean log2 ratio of each group (rows) in each gene (columns)."""
        lowest, highest = (torch.as_tensor(x, dtype=torch.float32) for x in (low, high))
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
                    self._contrasts(tensors, outputs, z, list(groups.values()), lowest, highest)
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


def _use(uses: pd.DataFrame, labels: np.ndarray) -> pd.DataFrame:
    """Which cell type uses each unit or program most."""
    known = ~pd.isna(labels)
    labels = labels[known].astype(str)
    names = np.unique(labels)
    if len(names) == 0:
        return pd.DataFrame({"source": list(uses)}).assign(
            cell_type=None, use=np.nan, use_elsewhere=np.nan
        )
    rows = []
    for name in uses:
        of_cell = uses[name].to_numpy()[known]
        means = [of_cell[labels == label].mean() for label in names]
        best = names[int(np.argmax(means))]
        others = labels != best
        elsewhere = of_cell[others].mean() if others.any() else np.nan
        rows.append((name, best, max(means), elsewhere))
    return pd.DataFrame(rows, columns=["source", "cell_type", "use", "use_elsewhere"])
