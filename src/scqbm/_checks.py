"""Checks of arguments: each raises one sentence that names the argument and says what it needs."""

from __future__ import annotations

import math
from collections.abc import Collection
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np


def at_least(name: str, value: Any, least: float) -> None:
    """A number that is not below ``least``."""
    if not (is_number(value) and value >= least):
        raise ValueError(f"`{name}` must be at least {least}, not {_shown(value)}.")


def whole(name: str, value: Any, least: int = 1) -> None:
    """An integer that is not below ``least``."""
    if not (_is_integer(value) and value >= least):
        raise ValueError(f"`{name}` must be an integer of at least {least}, not {value!r}.")


def positive(name: str, value: Any) -> None:
    """A number above 0."""
    if not (is_number(value) and value > 0):
        raise ValueError(f"`{name}` must be positive, not {_shown(value)}.")


def not_negative(name: str, value: Any) -> None:
    """A number of 0 or more."""
    if not (is_number(value) and value >= 0):
        raise ValueError(f"`{name}` must not be negative, as {_shown(value)} is.")


def amount(name: str, value: Any, below: float = math.inf) -> None:
    """A number of 0 or more, and less than ``below``."""
    if not (is_number(value) and 0 <= value < below):
        limit = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"`{name}` must be 0 or more{limit}, not {_shown(value)}.")


def one_of(name: str, value: Any, options: Collection[str]) -> None:
    """One of several words."""
    if value not in options:
        raise ValueError(f"`{name}` must be one of {options}, not {value!r}.")


def name_or_none(name: str, value: Any) -> None:
    """A name to store results under."""
    if value is not None and not (isinstance(value, str) and value):
        raise ValueError(f"`{name}` must be a name or None, not {value!r}.")


def arguments(of: str, given: Collection[str], known: Collection[str]) -> None:
    """No argument but the known ones; a likely typo gets a hint."""
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f": did you mean `{close[0]}`?" if close else "."
            raise TypeError(f"{of} has no argument `{name}`{hint}")


def column(adata, name: str, key: Any) -> None:
    """A column of ``adata.obs``."""
    if key not in adata.obs:
        raise ValueError(f"`{name}` must be a column of adata.obs, not {key!r}.")


def which_cells(n_obs: int, cells: Any, name: str = "indices") -> np.ndarray:
    """Positions of the cells that a mask or a list of indices names.

    A Boolean mask must have one entry a cell. Negative indices count from the end, as in NumPy.
    """
    cells = np.asarray(cells)
    if cells.dtype == bool:
        if cells.shape != (n_obs,):
            raise ValueError(
                f"`{name}` is a mask of shape {cells.shape}, but there are {n_obs} cells: a mask "
                "must have one entry a cell."
            )
        return np.flatnonzero(cells)
    if cells.size == 0:
        return np.zeros(0, dtype=int)
    if cells.ndim != 1 or cells.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must be a Boolean mask or a list of integers.")
    if cells.min() < -n_obs or cells.max() >= n_obs:
        outside = cells[(cells < -n_obs) | (cells >= n_obs)][0]
        raise ValueError(f"`{name}` holds {outside}, but there are only {n_obs} cells.")
    return np.where(cells < 0, cells + n_obs, cells)


def is_number(value: Any) -> bool:
    """Whether it is a real number."""
    return isinstance(value, Real)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A number as it prints, anything else with its quotes."""
    return str(value) if isinstance(value, Real) else repr(value)
