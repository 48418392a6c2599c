"""Data: simulated counts with known truth, and real datasets read from a folder."""

from ._files import available, load, prepare
from ._simulate import simulate

__all__ = ["available", "load", "prepare", "simulate"]
