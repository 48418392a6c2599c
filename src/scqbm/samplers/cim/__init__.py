"""Coherent Ising machines: a simulated one, and QBoson's through its own software."""

from scqbm.samplers.cim._kaiwu import KaiwuSampler
from scqbm.samplers.cim._simulated import CIMSampler

__all__ = ["CIMSampler", "KaiwuSampler"]
