"""D-Wave's Ocean: any of its samplers, and its quantum annealers."""

from scqbm.samplers.ocean._dimod import DimodSampler
from scqbm.samplers.ocean._qpu import QPUSampler

__all__ = ["DimodSampler", "QPUSampler"]
