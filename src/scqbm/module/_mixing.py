"""How much the codes of the batches differ.

The model has one prior for all batches. A flexible prior does not enforce it: it can give each
batch modes of its own, and a code that holds its batch then costs at most the entropy of the
batches, about a nat. The statistic below lets the loss penalise such codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

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
    n = len(codes)
    norm = codes.square().sum(-1)
    squared = (norm.unsqueeze(1) + norm - 2 * codes @ codes.T).clamp(min=0)
    unit = squared.detach().mean().clamp(min=1e-12)
    kernel = sum(torch.exp(-squared / (2 * width * unit)) for width in BANDWIDTHS)
    kernel = kernel - kernel.diagonal().diag()
    member = one_hot(batch.flatten().long(), n_batch).to(kernel.dtype)
    inside = member.sum(0)
    outside = n - inside
    towards = kernel @ member  # summed similarity of each cell to each batch
    within = (member * towards).sum(0)
    across = towards.sum(0) - within
    elsewhere = kernel.sum() - within - 2 * across
    squared_mmd = (
        within / (inside * (inside - 1)).clamp(min=1)
        + elsewhere / (outside * (outside - 1)).clamp(min=1)
        - 2 * across / (inside * outside).clamp(min=1)
    )
    counts = (inside > 1) & (outside > 1)
    return torch.where(counts, inside / n * squared_mmd, 0.0).sum()
