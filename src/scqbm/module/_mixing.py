"""How much the codes of the batches differ, above all where cells have counterparts elsewhere.

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
REACH = 0.05  # width that decides who is whose counterpart
# What the two parts count. Counterparts alone leave types apart that few batches have; whole
# batches alone even out what differs between batches in composition or in time.
COUNTERPARTS, WHOLE_BATCHES = 0.1, 0.2
USUAL_KL = 10.0  # nats; the weight of the penalty is for codes that say so much of a cell
LEAST_KL = 1.0  # codes that say less can hold little but the batch
# Log-similarities of pairs that are far apart, and of pairs that do not count: small enough, and
# their exponentials are still normal numbers (others take a CPU many times as long).
_FAR, _NONE = -60.0, -80.0


def batch_discrepancy(codes: Tensor, batch: Tensor, n_batch: int) -> Tensor:
    """How different the codes of the batches are.

    The sum of two parts, each a difference between the mean similarities of two kinds of pairs of
    cells, and each about 0 where batches are mixed:

    * pairs of *neighbours* less pairs of *counterparts*. Neighbours have similar codes;
      counterparts are the neighbours of a cell in other batches. Both are soft and mutual: a pair
      counts by its similarity over the root of what each of the two is similar to altogether, so
      that it does not matter how many cells of a type a batch has. A cell counts less if its
      counterparts are closer to other cells of its batch, so that a type that only one batch has
      is left alone;
    * pairs within a batch and pairs outside it less pairs across, with a smaller weight: the
      squared maximum mean discrepancy between each batch and the rest (Gretton et al. 2012; as a
      penalty of a VAE Louizos et al. 2016), unbiased, averaged over batches by their cells.

    Parameters
    ----------
    codes
        One row a cell, for example its posterior's mean.
    batch
        Batch of each cell, as integers.
    n_batch
        Number of batches.
    """
    return _Discrepancy.apply(codes, batch.flatten().long(), n_batch)


def mixing_penalty(codes: Tensor, batch: Tensor, n_batch: int, kl: Tensor) -> Tensor:
    """:func:`batch_discrepancy` in proportion to what the codes say of the cells.

    Where codes say little, as where counts or genes are few, the batches are worth few nats too,
    and a penalty of full weight would take types with them.

    Parameters
    ----------
    codes, batch, n_batch
        As in :func:`batch_discrepancy`.
    kl
        ``KL(q || p)`` per cell in nats; 10 on average leaves the discrepancy as it is, and less
        than 1 counts as 1.
    """
    informed = kl.detach().mean().clamp(min=LEAST_KL) / USUAL_KL
    return informed.to(codes.dtype) * batch_discrepancy(codes, batch, n_batch)


def _of_counterparts(scaled: Tensor, same: Tensor) -> Tensor:
    """What the similarity of each pair counts in the first part; the weights sum to 0.

    They are 0 if there is only one batch or if no two cells are of one batch.

    Parameters
    ----------
    scaled
        Squared distances of all pairs, in units of their mean.
    same
        Which pairs are of one batch.
    """
    # both kinds of pairs at once: neighbours and counterparts
    n, tiny = len(same), torch.finfo(scaled.dtype).tiny
    none = torch.stack([torch.eye(n, dtype=torch.bool, device=same.device), same])
    close = (scaled / (-2 * REACH)).clamp_(min=_FAR).masked_fill(none, _NONE)
    half = torch.logsumexp(close, -1, keepdim=True) / 2
    # each over the root of the sums of its row and its column
    pairs = close.sub_(half).sub_(half.mT).exp_().masked_fill_(none, 0.0)
    counts = pairs[1].sum(1).clamp(max=1)  # how much a cell is its counterparts' counterpart
    pairs *= torch.outer(counts, counts).sqrt_()
    total = pairs.sum((1, 2))
    pairs /= total.clamp(min=tiny).view(2, 1, 1)
    # the more batches there are, the more neighbours are counterparts, and the less they differ
    own = (same.sum() - n).to(scaled.dtype) / max(n * (n - 1), 1)
    scale = torch.where(torch.minimum(own, total[1]) > 0, counts.mean() / own, 0.0)
    return (pairs[0] - pairs[1]) * scale


def _of_whole_batches(batch: Tensor, n_batch: int, same: Tensor, dtype: torch.dtype) -> Tensor:
    """What the similarity of each pair counts in the second part; the weights sum to 0.

    Let a batch have ``n`` cells here, with ``m`` cells outside it, and the share ``w`` of all. A
    pair inside counts ``w / (n (n - 1))``, a pair outside ``w / (m (m - 1))``, and a pair across
    ``-w / (n m)``. Summed over batches, that is a constant, a term for each of the two cells, and
    one term more if they are of the same batch. Batches with fewer than two cells here (or
    outside) do not count.
    """
    inside = torch.bincount(batch, minlength=n_batch).double()
    outside = len(batch) - inside
    counts = (torch.minimum(inside, outside) > 1).double() / len(batch)  # w / n, or 0
    across = counts / outside.clamp(min=1)
    elsewhere = across * inside / (outside - 1).clamp(min=1)
    within = counts / (inside - 1).clamp(min=1)
    of_batch = torch.stack([elsewhere + across, within + elsewhere + 2 * across])
    of_cell, of_same = of_batch[:, batch].to(dtype)
    weights = same * of_same
    weights += elsewhere.sum().to(dtype) - of_cell
    weights -= of_cell.unsqueeze(1)
    return weights.fill_diagonal_(0.0)


class _Discrepancy(Function):
    """Weighted sum of the similarities of all pairs, with its gradient at once: few operations."""

    @staticmethod
    def forward(ctx, codes: Tensor, batch: Tensor, n_batch: int) -> Tensor:
        """The weights of the pairs are constants for the gradient."""
        norm = codes.square().sum(-1)
        squared = torch.addmm(norm, codes, codes.T, alpha=-2).add_(norm.unsqueeze(1)).clamp_(min=0)
        unit = squared.mean().clamp_(min=1e-12)
        same = batch.unsqueeze(1) == batch
        weights = _of_whole_batches(batch, n_batch, same, codes.dtype).mul_(WHOLE_BATCHES)
        weights.add_(_of_counterparts(squared / unit, same), alpha=COUNTERPARTS)
        scales = codes.new_tensor(BANDWIDTHS).mul_(-2 * unit).reciprocal_()
        # less 1, which changes nothing as the weights sum to 0: exact where all agree
        similar = torch.outer(scales, squared.view(-1)).exp_().sub_(1)
        if ctx.needs_input_grad[0]:  # each pair moves both its cells, and stands in both orders
            slope = torch.mv(similar.T, scales).add_(scales.sum()).view_as(weights).mul_(weights)
            ctx.save_for_backward(4 * (slope.sum(-1, keepdim=True) * codes - slope @ codes))
        return torch.mv(similar, weights.view(-1)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradient of the codes."""
        (of_codes,) = ctx.saved_tensors
        return grad * of_codes, None, None
