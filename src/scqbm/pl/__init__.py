"""Plots. Each takes data and ``ax``, draws there or in a new figure, and returns the Axes."""

from scqbm.pl._assessment import assessment
from scqbm.pl._embeddings import embeddings
from scqbm.pl._energy import energy_by_group
from scqbm.pl._integration import integration
from scqbm.pl._training import training

__all__ = ["assessment", "embeddings", "energy_by_group", "integration", "training"]
