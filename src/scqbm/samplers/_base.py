"""The protocol: what a sampler receives and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scqbm.ising import RBM
from scqbm.samplers._redact import redacted

_MANY = 6  # numbers that one argument may show


State = dict[str, Any]  # tensors and ints, which checkpoints can hold


@dataclass
class Draws:
    """What a sampler returns: joint draws of both layers, and what it needs for the next query.

    Parameters
    ----------
    visible
        Draws of the visible layer, shape ``(n_draws, n_visible)``. This tensor must not share
        memory with a tensor in ``state``.
    hidden
        Draws of the hidden layer, shape ``(n_draws, n_hidden)``.
    state
        Tensors and ints that the sampler wants back at the next query. Checkpoints store it.
    weights
        Weights of the draws; ``None`` if all draws count the same.
    info
        Diagnostics as plain floats. Use these names where they apply: ``roots`` (effective number
        of independent starts that the draws descend from), ``swap_rate``, ``beta`` (effective
        inverse temperature), ``chain_break_fraction``, ``seconds``.
    """

    visible: Tensor
    hidden: Tensor
    state: State = field(default_factory=dict)
    weights: Tensor | None = None
    info: dict[str, float] = field(default_factory=dict)

    def to(self, *args: Any) -> Draws:
        """The draws and their weights on another device or in another precision."""
        weights = None if self.weights is None else self.weights.to(*args)
        visible, hidden = self.visible.to(*args), self.hidden.to(*args)
        return replace(self, visible=visible, hidden=hidden, weights=weights)

    def cpu(self) -> Draws:
        """All of it on the CPU, the state too."""
        state = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self.state.items()}
        return replace(self.to("cpu"), state=state)


class Sampler(ABC):
    """Draws from the Boltzmann distribution of an RBM at temperature 1.

    To write your own sampler, derive from this class and implement :meth:`sample`. The module
    :mod:`scqbm.ising` states the signs and units. If the sampler holds an access token, return
    the token from :meth:`secrets` as well, so that no error message shows it.

    Attributes
    ----------
    asked_once
        Whether only the first process of a training on several devices asks, for all of them, as
        is right for a machine that is paid by the query. False by default: each process asks.
    transverse
        Whether the sampler can draw from a machine whose hidden units are in transverse fields
        (:attr:`scqbm.ising.RBM.gamma`). False by default.
    """

    asked_once: bool = False
    transverse: bool = False

    @abstractmethod
    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Draw ``n_draws`` joint states of ``rbm``.

        Parameters
        ----------
        rbm
            Biases and couplings.
        n_draws
            Number of draws.
        state
            The ``state`` of the previous query's draws, or ``None`` to start afresh.
        generator
            Source of random numbers on the device of ``rbm``. The same generator gives the same
            draws.
        """

    def secrets(self) -> list[str | None]:
        """Access tokens that no message may show; an empty list by default."""
        return []

    def __repr__(self) -> str:
        """The class and its arguments, without access tokens."""
        kept, shown = self._kept(), []
        for name, parameter in signature(type(self)).parameters.items():
            if name not in kept:
                continue
            variable = parameter.kind is Parameter.VAR_KEYWORD and isinstance(kept[name], Mapping)
            for key, value in (kept[name] if variable else {name: kept[name]}).items():
                shown.append(f"{key}={_brief(value)}")
        return redacted(f"{type(self).__name__}({', '.join(shown)})", self.secrets())

    def _kept(self) -> Mapping[str, Any]:
        """The arguments by name, as far as the sampler keeps them, for ``repr``."""
        return vars(self)


def _brief(value: object) -> str:
    """A value on one line: long lists are cut, and objects that say nothing give their class."""
    if value is ...:
        return "..."
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        long = len(value) > _MANY
        return f"[{', '.join(map(_brief, [*value[:2], ..., *value[-2:]] if long else value))}]"
    if type(value).__repr__ is object.__repr__:
        return f"{type(value).__name__}(...)"
    return " ".join(repr(value).split())
