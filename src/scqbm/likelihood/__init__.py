"""Count distributions of scvi-tools whose log-probability does its hard work at non-zero counts.

Most counts of single cells are 0, and there all gamma functions of the likelihood cancel:
``lgamma(x + theta) - lgamma(theta) - lgamma(x + 1)`` is 0 at ``x = 0``. No library offers this.
"""

from scqbm.likelihood._counts import (
    SparseNegativeBinomial,
    SparsePoisson,
    SparseZeroInflatedNegativeBinomial,
    sparse,
)

__all__ = [
    "SparseNegativeBinomial",
    "SparsePoisson",
    "SparseZeroInflatedNegativeBinomial",
    "sparse",
]
