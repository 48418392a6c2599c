"""Which states merge at which height, as the energy rises: persistence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MergeTree:
    """Each state but the lowest merges into a deeper one, at the lowest barrier between them.

    Parameters
    ----------
    energy
        Energy of each state.
    parent
        The state whose valley each state merges into: the deepest of it. -1 for the lowest.
    height
        Energy at which it merges; infinite for the lowest, and for all that nothing connects.
    """

    energy: np.ndarray
    parent: np.ndarray
    height: np.ndarray

    @property
    def persistence(self) -> np.ndarray:
        """How deep each state is: the climb out of it to a deeper one."""
        return self.height - self.energy

    def cut(
        self, resolution: float, counts: np.ndarray | None = None, least: int = 0
    ) -> np.ndarray:
        """For each state, the state that it belongs to once shallow and rare ones have merged.

        Parameters
        ----------
        resolution
            Least depth of a state that stands for itself; 0 keeps all.
        counts
            How many cells run down to each state.
        least
            A state that stands for fewer cells than this joins the deeper one as well.
        """
        n = len(self.energy)
        deepest_first = np.lexsort((np.arange(n), self.energy))
        own = (self.persistence >= resolution) | (self.parent < 0)
        of_state = np.zeros(n, int) if counts is None else np.array(counts)
        for state in deepest_first[::-1]:  # what merges into a state stands before it here
            if self.parent[state] >= 0:
                own[state] &= of_state[state] >= least
                if not own[state]:
                    of_state[self.parent[state]] += of_state[state]
        belongs = np.arange(n)
        for state in deepest_first:
            if not own[state]:
                belongs[state] = belongs[self.parent[state]]
        return belongs


def merge_tree(energy: np.ndarray, pairs: np.ndarray, heights: np.ndarray) -> MergeTree:
    """Merge valleys from the lowest barrier up; the deeper state gives its name to both.

    Parameters
    ----------
    energy
        Energy of each state.
    pairs
        States between which barriers are known, shape ``(n_pairs, 2)``.
    heights
        The barriers.
    """
    n = len(energy)
    order = np.lexsort((np.arange(n), energy))
    rank = np.empty(n, int)
    rank[order] = np.arange(n)
    valley, parent, height = np.arange(n), np.full(n, -1), np.full(n, np.inf)

    def deepest(state: int) -> int:
        while valley[state] != state:
            valley[state] = valley[valley[state]]
            state = valley[state]
        return state

    for edge in np.argsort(heights, kind="stable"):
        one, other = (deepest(state) for state in pairs[edge])
        if one == other:
            continue
        lower, upper = (one, other) if rank[one] < rank[other] else (other, one)
        valley[upper], parent[upper] = lower, lower
        height[upper] = max(heights[edge], energy[upper])
    return MergeTree(np.asarray(energy, float), parent, height)
