"""scqbm: scVI with a Boltzmann prior, sampled by quantum or classical hardware."""

# scvi-tools 1.4.2 uses rich.pretty without importing it, which rich >= 15 no longer forgives
import rich.pretty

from scqbm import benchmark, data, pl, samplers
from scqbm.model import QBMVI

del rich  # loaded for scvi-tools, not a name of ours

__version__ = "0.1.0"
__all__ = ["QBMVI", "benchmark", "data", "pl", "samplers"]
