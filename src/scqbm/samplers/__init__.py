"""Samplers of the prior: numbers in, fresh draws out. None of them knows the model."""

from scqbm.samplers._assess import Moments, assess, moments, plot_assessment
from scqbm.samplers._base import Draws, Sampler
from scqbm.samplers._cim import CIMSampler
from scqbm.samplers._dimod import DimodSampler
from scqbm.samplers._exact import ExactSampler
from scqbm.samplers._gibbs import GibbsSampler
from scqbm.samplers._health import effective_beta, effective_number
from scqbm.samplers._kaiwu import KaiwuSampler
from scqbm.samplers._qpu import QPUSampler
from scqbm.samplers._tempering import TemperingSampler

__all__ = [
    "CIMSampler",
    "DimodSampler",
    "Draws",
    "ExactSampler",
    "GibbsSampler",
    "KaiwuSampler",
    "Moments",
    "QPUSampler",
    "Sampler",
    "TemperingSampler",
    "assess",
    "effective_beta",
    "effective_number",
    "moments",
    "plot_assessment",
]
