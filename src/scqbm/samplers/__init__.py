"""Samplers of the prior: they receive an RBM as plain numbers and return draws from it.

A sampler knows nothing of the model. :class:`Sampler` is the protocol, :func:`ask` queries any
sampler and checks its answer, :func:`assess` measures how good its draws are.
"""

from scqbm.ising import effective_beta, effective_number
from scqbm.pl import assessment as plot_assessment
from scqbm.samplers._ask import SamplerError, ask, check_sampler
from scqbm.samplers._assess import assess
from scqbm.samplers._base import Draws, Sampler
from scqbm.samplers._exact import ExactSampler
from scqbm.samplers._fields import matching_fields
from scqbm.samplers._gibbs import GibbsSampler
from scqbm.samplers._moments import Moments, moments
from scqbm.samplers._tempering import TemperingSampler
from scqbm.samplers.cim import CIMSampler, KaiwuSampler
from scqbm.samplers.ocean import DimodSampler, QPUSampler

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
    "SamplerError",
    "TemperingSampler",
    "ask",
    "assess",
    "check_sampler",
    "effective_beta",
    "effective_number",
    "matching_fields",
    "moments",
    "plot_assessment",
]
