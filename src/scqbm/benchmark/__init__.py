"""Judging embeddings and models of cells: one call a question, a tidy table as the answer."""

from .classification import classification
from .generation import generation
from .integration import aggregates, integration
from .likelihood import likelihood
from .plots import plot_integration
from .trajectory import trajectory

__all__ = [
    "aggregates",
    "classification",
    "generation",
    "integration",
    "likelihood",
    "plot_integration",
    "trajectory",
]
