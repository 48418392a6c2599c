"""scqbm: scVI with a Boltzmann prior, sampled by quantum or classical hardware."""

# scvi-tools 1.4.2 uses rich.pretty without importing it, which rich >= 15 no longer forgives
import rich.pretty  # noqa: F401

from scqbm import benchmark, data, samplers
from scqbm._model import QBMVI

__version__ = "0.1.0"
__all__ = ["QBMVI", "benchmark", "data", "samplers"]
