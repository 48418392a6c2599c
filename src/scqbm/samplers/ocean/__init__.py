"""Samplers of D-Wave's Ocean: any classical one, and the quantum annealers."""

from scqbm.samplers.ocean._dimod import DimodSampler
from scqbm.samplers.ocean._qpu import QPUSampler

__all__ = ["DimodSampler", "QPUSampler"]
