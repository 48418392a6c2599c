"""The protocol: what a sampler receives and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from inspect import signature

import torch
from torch import Tensor

from scqbm.ising import RBM


@dataclass
class Draws:
    """What a sampler returns.

    Parameters
    ----------
    visible
        Draws of the visible layer, shape ``(n_draws, n_visible)``; never an alias of ``state``.
    hidden
        Draws of the hidden layer, shape ``(n_draws, n_hidden)``.
    state
        Tensors and ints that the sampler wants back at the next query; checkpoints carry it.
    weights
        Weights of the draws, if not equal.
    info
        Diagnostics, plain floats, under these names where they apply: ``roots`` (effective number
        of independent starts that the draws descend from), ``swap_rate``, ``beta`` (effective
        inverse temperature), ``chain_break_fraction``, ``seconds``.
    """

    visible: Tensor
    hidden: Tensor
    state: dict[str, Tensor | int] = field(default_factory=dict)
    weights: Tensor | None = None
    info: dict[str, float] = field(default_factory=dict)


class Sampler(ABC):
    """Draws from the Boltzmann distribution of an RBM at temperature 1.

    Write one by giving :meth:`sample`; see :mod:`scqbm.ising` for sign and units.
    """

    @abstractmethod
    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: dict[str, Tensor | int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Draw ``n_draws`` joint states of ``rbm``.

        Parameters
        ----------
        rbm
            Biases and couplings.
        n_draws
            How many draws.
        state
            What the previous call returned, or ``None`` to start afresh.
        generator
            Source of random numbers on the device of ``rbm``; the same one gives the same draws.
        """

    def secrets(self) -> list[str | None]:
        """Access tokens that no error text may show; a sampler without any leaves this alone."""
        return []

    def __repr__(self) -> str:
        """The class and the arguments that it keeps under their own names."""
        names = [name for name in signature(type(self)).parameters if name in vars(self)]
        return f"{type(self).__name__}({', '.join(f'{n}={vars(self)[n]!r}' for n in names)})"
