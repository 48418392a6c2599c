"""How much the codes of the batches differ.

The model has one prior for all batches. A flexible prior does not enforce it: it can give each
batch modes of its own, and a code that holds its batch then costs at most the entropy of the
batches, about a nat. The statistic below lets the loss penalise such codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Widths of the kernel in units of the mean squared distance. The narrow ones compare codes with
# their neighbours only, so that cell types of one batch are not dragged to those of another.
BANDWIDTHS = (0.05, 0.2, 0.8)


def batch_discrepancy(codes: Tensor, batch: Tensor, n_batch: int) -> Tensor:
    """Squared maximum mean discrepancy between each batch and the rest (Gretton et al. 2012).

    The unbiased estimate, averaged over batches by their cells: 0 in expectation where all
    batches follow one distribution, negative values included. As an invariance penalty of a VAE
    it goes back to Louizos et al. 2016.

    Parameters
    ----------
    codes
        One row a cell, for example its posterior's mean.
    batch
        Batch of each cell, as integers.
    n_batch
        Number of batches; those with fewer than two cells here (or outside) do not count.
    """
    return _Discrepancy.apply(codes, _weights(batch.flatten().long(), n_batch))


def _weights(batch: Tensor, n_batch: int) -> Tensor:
    """What the similarity of each pair of cells counts; each pair stands in both orders.

    Let a batch have ``n`` cells here, with ``m`` cells outside it, and the share ``w`` of all. A
    pair inside counts ``w / (n (n - 1))``, a pair outside ``w / (m (m - 1))``, and a pair across
    ``-w / (n m)``. Summed over batches, that is a constant, a term for each of the two cells, and
    one term more if they are of the same batch.
    """
    inside = torch.bincount(batch, minlength=n_batch).double()
    outside = len(batch) - inside
    counts = (inside > 1) & (outside > 1)
    share = torch.where(counts, inside / len(batch), 0.0)
    within = share / (inside * (inside - 1)).clamp(min=1)
    elsewhere = share / (outside * (outside - 1)).clamp(min=1)
    across = share / (inside * outside).clamp(min=1)
    of_cell = (elsewhere + across)[batch]
    of_same = (within + elsewhere + 2 * across)[batch]
    weights = (batch.unsqueeze(1) == batch) * of_same
    weights += elsewhere.sum() - of_cell - of_cell.unsqueeze(1)
    return weights.fill_diagonal_(0.0)


class _Discrepancy(Function):
    """Weighted sum of the similarities of all pairs, with its gradient at once: few operations."""

    @staticmethod
    def forward(ctx, codes: Tensor, weights: Tensor) -> Tensor:
        """``weights`` is symmetric."""
        weights = weights.to(codes.dtype)
        norm = codes.square().sum(-1)
        squared = torch.addmm(norm, codes, codes.T, alpha=-2).add_(norm.unsqueeze(1)).clamp_(min=0)
        unit = squared.mean().clamp(min=1e-12)
        total, slope = codes.new_zeros(()), torch.zeros_like(squared)
        for width in BANDWIDTHS:
            scale = -1 / (2 * width * unit)
            similar = (squared * scale).exp_()
            total += ((similar - 1) * weights).sum()  # the weights sum to 0: exact where all agree
            slope.addcmul_(similar.mul_(weights), scale)
        if ctx.needs_input_grad[0]:  # each pair moves both its cells, and stands in both orders
            ctx.save_for_backward(4 * (slope.sum(-1, keepdim=True) * codes - slope @ codes))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradient of the codes."""
        (of_codes,) = ctx.saved_tensors
        return grad * of_codes, None
