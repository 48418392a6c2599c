"""From the units of a problem to the qubits of a chip and back, as index arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import networkx as nx


class Embedding:
    """Chains of qubits, one for each unit, with all index arrays that a query needs.

    Parameters
    ----------
    chains
        Qubits of each unit.
    edges
        Coupled pairs of units, shape ``(n_edges, 2)``.
    graph
        The chip's working graph.

    Attributes
    ----------
    qubits
        All qubits, chain by chain.
    rows, columns
        Ends of the couplers in use, as positions in ``qubits``.
    chain_neighbours
        For each qubit, the number of couplers that hold it in its chain.
    """

    def __init__(self, chains: list[list[int]], edges: np.ndarray, graph: nx.Graph):
        self.chains = chains
        self.lengths = np.array([len(chain) for chain in chains])
        self.qubits = np.concatenate([np.asarray(chain) for chain in chains])
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._unit = np.repeat(np.arange(len(chains)), self.lengths)
        self._n_edges = len(edges)
        place = np.full(max(graph) + 1, -1)
        place[self.qubits] = np.arange(len(self.qubits))
        ends = place[np.array(graph.edges)]
        ends = ends[(ends >= 0).all(1)]
        # by column, then row: from this order dimod builds a model ten times faster
        ends.sort(1)
        ends = ends[np.lexsort((ends[:, 0], ends[:, 1]))]
        units = np.sort(self._unit[ends], 1)
        edge = find_pairs(units, np.sort(edges, 1), len(chains))
        inside = units[:, 0] == units[:, 1]
        edge[inside] = self._n_edges  # couplers within a chain come after all edges
        used = edge >= 0
        self.rows, self.columns = ends[used].T
        self._edge = edge[used]
        self._within = self._edge == self._n_edges
        self._shared = np.bincount(self._edge, minlength=self._n_edges + 1)[: self._n_edges]
        if self._n_edges and self._shared.min() == 0:
            raise ValueError("The embedding leaves pairs of coupled units without a coupler.")
        n = len(self.qubits)
        ends = np.stack([self.rows, self.columns])
        self.chain_neighbours = np.bincount(ends[:, self._within].ravel(), minlength=n)

    @property
    def has_chains(self) -> bool:
        """Whether any unit takes more than one qubit."""
        return len(self.qubits) > len(self.lengths)

    def program(
        self, fields: np.ndarray, couplings: np.ndarray, chain_strength: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Biases of the qubits and of the couplers: those of a unit are divided evenly.

        Parameters
        ----------
        fields
            Field of each unit.
        couplings
            Coupling of each edge.
        chain_strength
            Size of the coupling within chains.
        """
        shares = np.append(couplings / self._shared, -chain_strength)
        return (fields / self.lengths)[self._unit], shares[self._edge]

    def strain(self, biases: np.ndarray, couplers: np.ndarray) -> tuple[float, float, np.ndarray]:
        """Size of the largest bias and coupler, and for each qubit the sum of its couplers' sizes.

        Couplers within chains do not count.
        """
        size = np.where(self._within, 0.0, np.abs(couplers))
        n = len(self.qubits)
        load = np.bincount(self.rows, size, n) + np.bincount(self.columns, size, n)
        return float(np.abs(biases).max()), float(size.max(initial=0.0)), load

    def vote(self, reads: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Spin of each unit by majority vote (ties at random), and which chains were broken.

        Parameters
        ----------
        reads
            Spins of the qubits, shape ``(n_reads, n_qubits)``.
        rng
            Source of the random spins.
        """
        if not self.has_chains:
            return reads, np.zeros(reads.shape, dtype=bool)
        total = np.add.reduceat(reads, self._starts, axis=1, dtype=np.int16)
        spins = np.sign(total).astype(np.int8)
        ties = spins == 0
        spins[ties] = rng.choice(np.array([-1, 1], dtype=np.int8), ties.sum())
        return spins, np.abs(total) < self.lengths


def find_pairs(pairs: np.ndarray, among: np.ndarray, n: int) -> np.ndarray:
    """Position of each pair in ``among``, or -1 if it is not there."""
    if len(among) == 0:
        return np.full(len(pairs), -1)
    key, table = pairs @ [n, 1], among @ [n, 1]
    order = np.argsort(table)
    place = np.minimum(np.searchsorted(table, key, sorter=order), len(table) - 1)
    found = order[place]
    return np.where(table[found] == key, found, -1)
