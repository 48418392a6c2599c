"""Judging embeddings and models of cells: one call a question, a tidy table as the answer."""

from .integration import aggregates, integration
from .likelihood import likelihood

__all__ = ["aggregates", "integration", "likelihood"]
