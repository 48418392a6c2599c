"""Simulated counts with known truth, and real datasets that are read from a folder."""

from scqbm.data._counts import log_normalised
from scqbm.data._files import available, load, prepare
from scqbm.data._simulate import simulate
from scqbm.data._writer import CellWriter

__all__ = ["CellWriter", "available", "load", "log_normalised", "prepare", "simulate"]
