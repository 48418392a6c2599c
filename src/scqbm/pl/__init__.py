"""Plots: each takes a table or an AnnData, and takes and returns Axes."""

from scqbm.pl._assessment import assessment

__all__ = ["assessment"]
