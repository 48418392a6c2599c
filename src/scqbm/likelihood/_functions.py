"""Log-likelihoods of counts with analytic gradients: dense work is cheap, hard work is sparse.

Each function computes what scvi-tools computes, in the same order where that fixes the last
digits, and ``eps`` is scvi-tools' too. Tensors of cells by genes are few. Gradients of gradients
are not defined.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from scqbm.likelihood._nonzeros import NonZeros


class NegativeBinomialLogProb(Function):
    """``apply(mu, theta, at, eps)``: log-probability of the counts ``at``, as dense as ``mu``."""

    @staticmethod
    def forward(ctx, mu: Tensor, theta: Tensor, at: NonZeros, eps: float) -> Tensor:
        """``theta`` is one number a gene, or as large as ``mu``."""
        total = theta + mu + eps
        log_total = total.log()
        out = ((theta + eps).log() - log_total).mul_(theta)
        at.set(out, _of_counts(at.of(out), at, mu, theta, log_total, eps))
        ctx.save_for_backward(mu, theta, total, log_total)
        ctx.at, ctx.eps = at, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradients of mean and dispersion."""
        mu, theta, total, log_total = ctx.saved_tensors
        at, eps = ctx.at, ctx.eps
        share = theta / total
        slopes = _Slopes(at, total)
        grad_mu = grad_theta = None
        if ctx.needs_input_grad[0]:
            grad_mu = at.add(share.neg(), slopes.mu(mu, eps)).mul_(grad)
        if ctx.needs_input_grad[1]:
            dense = _theta_slope(theta, share, log_total, eps)
            grad_theta = at.add(dense, slopes.theta(theta)).mul_(grad).sum_to_size(theta.shape)
        return grad_mu, grad_theta, None, None


class ZeroInflatedLogProb(Function):
    """``apply(mu, theta, logits, at, eps)``: the same with extra zeros of these log-odds."""

    @staticmethod
    def forward(ctx, mu: Tensor, theta: Tensor, logits: Tensor, at: NonZeros, eps: float):
        """``theta`` is one number a gene, or as large as ``mu`` and ``logits``."""
        total = theta + mu + eps
        log_total = total.log()
        # log-odds of a zero count: that of the negative binomial against an extra zero
        odds = ((theta + eps).log() - log_total).mul_(theta).sub_(logits)
        kept = softplus(-logits)  # minus the log-probability of an extra zero
        out = softplus(odds) - kept
        zero = at.of(odds) - at.of(kept)
        at.set(out, _of_counts(zero, at, mu, theta, log_total, eps))
        ctx.save_for_backward(mu, theta, logits, total, log_total, odds)
        ctx.at, ctx.eps = at, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradients of mean, dispersion and log-odds of an extra zero."""
        mu, theta, logits, total, log_total, odds = ctx.saved_tensors
        at, eps = ctx.at, ctx.eps
        share = theta / total
        slopes = _Slopes(at, total)
        # how much of a count the negative binomial explains: all of it where it is not zero
        weight = at.set(odds.sigmoid(), odds.new_ones(1, 1))
        grad_mu = grad_theta = grad_logits = None
        if ctx.needs_input_grad[0]:
            grad_mu = at.add((share * weight).neg_(), slopes.mu(mu, eps)).mul_(grad)
        if ctx.needs_input_grad[1]:
            dense = _theta_slope(theta, share, log_total, eps).mul_(weight)
            grad_theta = at.add(dense, slopes.theta(theta)).mul_(grad).sum_to_size(theta.shape)
        if ctx.needs_input_grad[2]:
            grad_logits = (-logits).sigmoid_().sub_(weight).mul_(grad)
        return grad_mu, grad_theta, grad_logits, None, None


class PoissonLogProb(Function):
    """``apply(rate, at)``: log-probability of the counts ``at``, as dense as ``rate``."""

    @staticmethod
    def forward(ctx, rate: Tensor, at: NonZeros) -> Tensor:
        """Minus the rate, and the rest where a count is not zero."""
        ctx.save_for_backward(rate)
        ctx.at = at
        x = at.values
        return at.add(rate.neg(), x.xlogy(at.of(rate)) - (x + 1).lgamma())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradient of the rate."""
        (rate,) = ctx.saved_tensors
        at = ctx.at
        return at.add(torch.full_like(rate, -1.0), at.values / at.of(rate)).mul_(grad), None


def _of_counts(
    zero: Tensor, at: NonZeros, mu: Tensor, theta: Tensor, log_total: Tensor, eps: float
) -> Tensor:
    """Log-probability of counts, from that of a negative binomial's zero in their place."""
    x = at.values
    with_mean = zero + x * ((at.of(mu) + eps).log() - at.of(log_total))
    gamma = (x + at.of(theta)).lgamma()
    return with_mean + gamma - at.of_function(torch.lgamma, theta) - (x + 1).lgamma()


def _theta_slope(theta: Tensor, share: Tensor, log_total: Tensor, eps: float) -> Tensor:
    """Derivative by ``theta`` of the log-probability of a zero."""
    of_theta = (theta + eps).log() + theta / (theta + eps)
    return (of_theta - log_total).sub_(share)


class _Slopes:
    """Derivatives of what a count adds to the log-probability of a zero."""

    def __init__(self, at: NonZeros, total: Tensor):
        self.at = at
        self.pull = at.values / at.of(total)

    def mu(self, mu: Tensor, eps: float) -> Tensor:
        return self.at.values / (self.at.of(mu) + eps) - self.pull

    def theta(self, theta: Tensor) -> Tensor:
        gamma = (self.at.values + self.at.of(theta)).digamma()
        return gamma - self.at.of_function(torch.digamma, theta) - self.pull
