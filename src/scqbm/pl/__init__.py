"""Plots. Each takes data and ``ax``, draws there or in a new figure, and returns the Axes."""

from scqbm.pl._assessment import assessment
from scqbm.pl._embeddings import embeddings
from scqbm.pl._energy import energy_by_group
from scqbm.pl._integration import integration
from scqbm.pl._landscape import landscape, merge_tree
from scqbm.pl._new_cells import new_cells
from scqbm.pl._training import training
from scqbm.pl._units import couplings, units

__all__ = [
    "assessment",
    "couplings",
    "embeddings",
    "energy_by_group",
    "integration",
    "landscape",
    "merge_tree",
    "new_cells",
    "training",
    "units",
]
