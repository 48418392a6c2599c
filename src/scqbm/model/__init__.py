"""Models: QBMVI, QBMANVI, and the parts that other models with a Boltzmann prior can use."""

from scqbm.model._decoding import decode, random_cells
from scqbm.model._prior_mixin import BoltzmannPriorMixin
from scqbm.model._programs import match_programs
from scqbm.model._qbmanvi import QBMANVI
from scqbm.model._qbmvi import QBMVI

__all__ = ["QBMANVI", "QBMVI", "BoltzmannPriorMixin", "decode", "match_programs", "random_cells"]
