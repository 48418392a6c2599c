"""Scores of embeddings and models: one function per question, a tidy table as the answer."""

from scqbm.benchmark._batches import batches
from scqbm.benchmark._classification import classification
from scqbm.benchmark._conditional import conditional_generation
from scqbm.benchmark._generation import generation
from scqbm.benchmark._inputs import pca
from scqbm.benchmark._integration import aggregates, integration
from scqbm.benchmark._likelihood import likelihood
from scqbm.benchmark._trajectory import trajectory
from scqbm.pl import integration as plot_integration

__all__ = [
    "aggregates",
    "batches",
    "classification",
    "conditional_generation",
    "generation",
    "integration",
    "likelihood",
    "pca",
    "plot_integration",
    "trajectory",
]
