"""What a user asks of new cells: which cells they resemble, and which units are fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor
from torch.distributions import Distribution

from scqbm._checks import is_number, which_cells
from scqbm.module import BitPosterior
from scqbm.prior import Prior

Like: TypeAlias = Mapping[str, Any] | Sequence[int] | Sequence[bool] | np.ndarray


def cells_like(adata: AnnData, like: Like) -> np.ndarray:
    """Positions of the cells that ``like`` names.

    Parameters
    ----------
    adata
        The cells.
    like
        From columns of ``obs`` to a value or a list of values; or a Boolean mask, or positions.
    """
    if not isinstance(like, Mapping):
        cells = which_cells(adata.n_obs, like, "like")
    else:
        keep = np.ones(adata.n_obs, bool)
        for column, wanted in like.items():
            if column not in adata.obs:
                raise ValueError(f"`like` names {column!r}, which is not a column of adata.obs.")
            values = pd.Series(adata.obs[column]).astype(str).to_numpy()
            options = _several(wanted)
            for value in options:
                if str(value) not in values:
                    known = sorted(set(values))
                    shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
                    raise ValueError(
                        f"`like` asks for {value!r} in {column!r}, which has only: {shown}."
                    )
            keep &= np.isin(values, [str(value) for value in options])
        cells = np.flatnonzero(keep)
    if len(cells) == 0:
        raise ValueError("`like` names no cells.")
    return cells


def describe(like: Like, n_cells: int) -> dict[str, Any] | str:
    """``like`` in a form that AnnData writes to a file."""
    if not isinstance(like, Mapping):
        return f"{n_cells} cells"
    return {column: np.array([str(v) for v in _several(x)]) for column, x in like.items()}


def _several(wanted: Any) -> list:
    """A value as a list, a list as it is, a set in order."""
    if isinstance(wanted, set | frozenset):
        return sorted(wanted, key=str)
    several = isinstance(wanted, list | tuple | np.ndarray | pd.Index | pd.Series)
    return list(wanted) if several else [wanted]


def fixed_units(steer: Mapping[int, float], prior: Prior) -> Tensor:
    """Values of the units that are fixed, NaN for the others."""
    if not isinstance(steer, Mapping):
        raise ValueError(f"`steer` must be a dict from units to values, not {steer!r}.")
    values, bits = torch.full((prior.n_latent,), torch.nan), not prior.rbm().gaussian
    for unit, value in steer.items():
        whole = isinstance(unit, int | np.integer) and not isinstance(unit, bool)
        if not whole or not 0 <= unit < prior.n_latent:
            raise ValueError(
                f"`steer` must name units from 0 to {prior.n_latent - 1}, not {unit!r}."
            )
        if not is_number(value) or not np.isfinite(value) or (bits and value not in (0, 1)):
            allowed = "0 or 1" if bits else "a finite number"
            raise ValueError(f"`steer` must give unit {unit} the value {allowed}, not {value!r}.")
        values[int(unit)] = float(value)
    return values


def check_codes(codes: Any, prior: Prior) -> np.ndarray:
    """Codes as a matrix of numbers, or one sentence."""
    codes = np.asarray(codes, dtype=np.float32)
    if codes.ndim != 2 or codes.shape[1] != prior.n_latent or len(codes) == 0:
        raise ValueError(
            f"`codes` must have the shape (n_cells, {prior.n_latent}), not {codes.shape}."
        )
    if not np.isfinite(codes).all():
        raise ValueError("`codes` must be finite numbers.")
    if not prior.rbm().gaussian and (codes.min() < 0 or codes.max() > 1):
        raise ValueError("`codes` of bits must be between 0 and 1.")
    return codes


def most_probable(qz: Distribution) -> Tensor:
    """The code of highest probability or density of each cell."""
    return (qz.loc > 0.5).to(qz.loc.dtype) if isinstance(qz, BitPosterior) else qz.loc
