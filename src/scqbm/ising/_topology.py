"""Where the units of a prior sit on an annealer's chip, so that no coupling needs a chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import networkx as nx

TOPOLOGIES = ("zephyr", "pegasus")


@dataclass(frozen=True)
class Layout:
    """Qubits of the two layers and the couplers between them.

    Parameters
    ----------
    visible
        Qubit of each visible unit.
    hidden
        Qubit of each hidden unit.
    rows
        Visible unit of each coupler.
    columns
        Hidden unit of each coupler.
    graph
        The chip's graph.
    """

    visible: np.ndarray
    hidden: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    graph: nx.Graph


def native_layout(topology: str | nx.Graph, n_visible: int, n_hidden: int) -> Layout:
    """Visible units on vertical qubits, hidden ones on horizontal qubits, close together.

    Vertical and horizontal qubits cross, and each crossing is a coupler of the RBM. Couplers
    between qubits of one direction are left out: they would join units of one layer. Depends on
    the arguments only, so that a sampler finds the same place again.

    Parameters
    ----------
    topology
        ``"zephyr"`` or ``"pegasus"`` for the smallest chip of that design with room for all units,
        or the working graph of a chip (made by :mod:`dwave.graphs`, integer labels).
    n_visible
        Visible units.
    n_hidden
        Hidden units.
    """
    graph = _smallest(topology, n_visible, n_hidden) if isinstance(topology, str) else topology
    family = graph.graph.get("family")
    if family not in TOPOLOGIES:
        raise ValueError(f"`prior_topology` must be one of {TOPOLOGIES}, not {family!r}.")
    qubits = np.array(sorted(graph))
    horizontal = np.array([graph.nodes[q][f"{family}_index"][0] == 1 for q in qubits.tolist()])
    place = _positions(graph)
    away = np.linalg.norm([place[q] for q in qubits.tolist()] - _centre(graph), axis=1).round(6)
    layers = []
    for n, side in ((n_visible, ~horizontal), (n_hidden, horizontal)):
        if side.sum() < n:
            raise ValueError(
                f"`n_latent` asks for {n} units in one layer, but this {family} graph has only "
                f"{side.sum()} qubits for it."
            )
        nearest = np.argsort(away[side], kind="stable")[:n]
        layers.append(np.sort(qubits[side][nearest]))
    visible, hidden = layers
    unit = np.full(qubits.max() + 1, -1)
    unit[visible] = np.arange(n_visible)
    unit[hidden] = np.arange(n_hidden)
    is_hidden = np.zeros(len(unit), dtype=bool)
    is_hidden[hidden] = True
    ends = np.array(graph.edges)
    ends = ends[(unit[ends] >= 0).all(1) & (is_hidden[ends].sum(1) == 1)]
    ends = np.where(is_hidden[ends[:, :1]], ends[:, ::-1], ends)  # vertical end first
    rows, columns = unit[ends].T
    order = np.lexsort((columns, rows))
    return Layout(visible, hidden, rows[order], columns[order], graph)


def ideal_graph(topology: str, size: int) -> nx.Graph:
    """A chip of that design without a missing qubit."""
    import dwave.graphs

    return getattr(dwave.graphs, f"{topology}_graph")(size)


def _smallest(topology: str, n_visible: int, n_hidden: int) -> nx.Graph:
    if topology not in TOPOLOGIES:
        raise ValueError(
            f"`prior_topology` must be one of {TOPOLOGIES} or None, not {topology!r}."
        )
    size = 2  # the smallest that both designs have
    while _side(topology, size) < max(n_visible, n_hidden):
        size += 1
    return ideal_graph(topology, size)


def _side(topology: str, size: int) -> int:
    """Qubits of one direction."""
    if topology == "zephyr":
        return 8 * size * (2 * size + 1)
    return 4 * (size - 1) * (3 * size - 1)


def _positions(graph: nx.Graph) -> dict[int, np.ndarray]:
    import dwave.graphs

    return getattr(dwave.graphs, f"{graph.graph['family']}_layout")(graph)


def _centre(graph: nx.Graph) -> np.ndarray:
    """The middle of the chip, missing qubits or not."""
    full = _positions(ideal_graph(graph.graph["family"], graph.graph["rows"]))
    corners = np.array(list(full.values()))
    return (corners.min(0) + corners.max(0)) / 2
