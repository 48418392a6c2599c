"""Modules: scVI's with a Boltzmann prior, and the parts that give any other module one."""

from scqbm.module._bits import BitEncoder, BitPosterior, Relaxation
from scqbm.module._boltzmann import BoltzmannMixin, BoltzmannTerms
from scqbm.module._defaults import Defaults
from scqbm.module._mixing import batch_discrepancy, mixing_penalty
from scqbm.module._qbanvae import QBANVAE, LabelPosterior
from scqbm.module._qbvae import QBVAE

__all__ = [
    "QBANVAE",
    "QBVAE",
    "BitEncoder",
    "BitPosterior",
    "BoltzmannMixin",
    "BoltzmannTerms",
    "Defaults",
    "LabelPosterior",
    "Relaxation",
    "batch_discrepancy",
    "mixing_penalty",
]
