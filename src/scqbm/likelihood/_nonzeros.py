"""Where the counts of a minibatch are not zero."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class NonZeros:
    """The non-zero counts of a minibatch, and tensors of parameters read and written there.

    Parameters
    ----------
    x
        Counts, cells by genes.
    """

    def __init__(self, x: Tensor):
        self.size = x.numel()
        flat = x.reshape(-1)
        self.where = (flat != 0).nonzero().squeeze(1)  # torch finds bytes faster than numbers
        self.gene = self.where % x.shape[-1]
        self.values = flat.index_select(0, self.where)

    @property
    def density(self) -> float:
        """Share of the counts that are not zero."""
        return len(self.where) / max(self.size, 1)

    def are_counts(self) -> bool:
        """Whether all values are positive integers."""
        return bool(((self.values > 0) & (self.values == self.values.floor())).all())

    def of(self, parameter: Tensor) -> Tensor:
        """A parameter at these counts, one row for each draw; a vector holds one value a gene."""
        if parameter.dim() == 1:
            return parameter.index_select(0, self.gene).unsqueeze(0)
        return parameter.reshape(-1, self.size).index_select(1, self.where)

    def of_function(self, function: Callable[[Tensor], Tensor], parameter: Tensor) -> Tensor:
        """A costly function of a parameter at these counts, evaluated as seldom as possible."""
        if parameter.numel() < len(self.where):
            return self.of(function(parameter))
        return function(self.of(parameter))

    def add(self, to: Tensor, values: Tensor) -> Tensor:
        """Add values at these counts to a contiguous tensor, in place."""
        to.view(-1, self.size).index_add_(1, self.where, values)
        return to

    def set(self, to: Tensor, values: Tensor) -> Tensor:
        """Put values at these counts of a contiguous tensor, in place."""
        flat = to.view(-1, self.size)
        flat.index_copy_(1, self.where, values.expand(len(flat), len(self.where)))
        return to
