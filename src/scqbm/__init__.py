"""scqbm: scVI with a Boltzmann prior, sampled by quantum or classical hardware."""

from scqbm import _rich, benchmark, data, pl, samplers
from scqbm.model import QBMANVI, QBMVI, match_programs

_rich.provide_pretty()

__version__ = "0.2.0"
__all__ = ["QBMANVI", "QBMVI", "benchmark", "data", "match_programs", "pl", "samplers"]
