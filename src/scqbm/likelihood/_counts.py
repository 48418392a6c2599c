"""scvi-tools' count distributions with a fast log-probability; all else of them stays."""

from __future__ import annotations

import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.distributions import Distribution

from scqbm.likelihood._functions import (
    NegativeBinomialLogProb,
    PoissonLogProb,
    ZeroInflatedLogProb,
)
from scqbm.likelihood._nonzeros import NonZeros

_DENSE = 0.5  # with a larger share of non-zeros, scvi-tools' own code is as fast


class SparseNegativeBinomial(NegativeBinomial):
    """:class:`scvi.distributions.NegativeBinomial` that is fast on counts with many zeros."""

    @torch.compiler.disable
    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count."""
        at = _non_zeros(value, self.mu)
        if at is None:
            return super().log_prob(value)
        mu, theta = _precise(self.mu, self.theta)
        return NegativeBinomialLogProb.apply(mu, _of_gene(theta), at, self._eps)


class SparseZeroInflatedNegativeBinomial(ZeroInflatedNegativeBinomial):
    """:class:`scvi.distributions.ZeroInflatedNegativeBinomial`, fast on counts with many zeros."""

    @torch.compiler.disable
    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count."""
        at = _non_zeros(value, self.mu)
        if at is None:
            return super().log_prob(value)
        mu, theta, logits = _precise(self.mu, self.theta, self.zi_logits)
        return ZeroInflatedLogProb.apply(mu, _of_gene(theta), logits, at, self._eps)


class SparsePoisson(Poisson):
    """:class:`scvi.distributions.Poisson` that is fast on counts with many zeros."""

    @torch.compiler.disable
    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count."""
        at = _non_zeros(value, self.rate)
        if at is None:
            return super().log_prob(value)
        return PoissonLogProb.apply(*_precise(self.rate), at)


def sparse(px: Distribution) -> Distribution:
    """The same distribution with a fast log-probability, if there is one; else ``px`` itself."""
    mean = getattr(px, "rate", None) if isinstance(px, Poisson) else getattr(px, "mu", None)
    if mean is None or mean.device.type != "cpu":
        return px  # on a GPU, gamma functions cost little, but each operation is a launch
    # the exact type: a subclass may have a log-probability of its own
    if type(px) is ZeroInflatedNegativeBinomial:
        return SparseZeroInflatedNegativeBinomial(
            mu=px.mu, theta=px.theta, zi_logits=px.zi_logits, scale=px.scale
        )
    if type(px) is NegativeBinomial:
        return SparseNegativeBinomial(mu=px.mu, theta=px.theta, scale=px.scale)
    if type(px) is Poisson:
        return SparsePoisson(rate=px.rate, scale=px.scale, validate_args=False)
    return px


def _non_zeros(value: Tensor, mean: Tensor) -> NonZeros | None:
    """The non-zero counts; ``None`` where scvi-tools' own code is to be used."""
    if (
        value.layout != torch.strided
        or value.dim() != 2
        or value.shape != mean.shape[-value.dim() :]
    ):
        return None
    at = NonZeros(value)
    # scvi-tools' code says what is wrong with values that are no counts
    return at if at.are_counts() and at.density <= _DENSE else None


def _precise(*parameters: Tensor) -> tuple[Tensor, ...]:
    """In at least single precision, as autocast would have it."""
    return tuple(p.to(torch.promote_types(p.dtype, torch.float32)) for p in parameters)


def _of_gene(theta: Tensor) -> Tensor:
    """One number a gene, where a dispersion was only repeated for each cell."""
    dims = range(theta.dim() - 1)
    repeated = all(theta.shape[dim] == 1 or theta.stride(dim) == 0 for dim in dims)
    return theta[(0,) * len(dims)] if repeated else theta
