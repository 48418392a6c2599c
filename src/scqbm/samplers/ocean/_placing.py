"""Where the units of a problem go on a chip: found once, then stored on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scqbm.ising import RBM, TOPOLOGIES, ideal_graph, native_layout
from scqbm.samplers.ocean._embedding import Embedding, find_pairs
from scqbm.samplers.ocean._problem import IsingProblem, coupled_pairs

if TYPE_CHECKING:
    import networkx as nx

CACHE_VARIABLE = "SCQBM_CACHE"
_WINDOWS = 4  # places on the chip tried for each size of window
_PATIENCE = 120  # seconds that minorminer may search

Chains = list[list[int]]


class Placement(NamedTuple):
    """A prior's place on a chip, for reuse while its couplings change.

    Parameters
    ----------
    size
        Visible units, hidden units and whether the visible ones are Gaussian.
    edges
        Coupled pairs of units.
    embedding
        Chains of qubits.
    native
        Whether each unit takes one qubit because the prior was made for such a chip.
    sparse
        Whether some visible unit is not coupled to some hidden unit.
    """

    size: tuple[int, int, bool]
    edges: np.ndarray
    embedding: Embedding
    native: bool
    sparse: bool


def placed(
    rbm: RBM, graph: nx.Graph, name: str, last: Placement | None
) -> tuple[Placement, IsingProblem]:
    """The place of a prior on a chip and its problem on the coupled pairs.

    Parameters
    ----------
    rbm
        The prior.
    graph
        The chip's working graph.
    name
        Name of the chip.
    last
        The last placement, which is used again if the prior's couplings still lie on it.
    """
    size = (rbm.n_visible, rbm.n_hidden, rbm.gaussian)
    if last is not None and last.size == size:
        problem = IsingProblem(rbm, last.edges)
        if problem.is_complete:
            return last, problem
    edges = coupled_pairs(rbm)
    n, m = (0 if rbm.gaussian else rbm.n_visible), rbm.n_hidden
    chains, native = place(edges, n, m, graph, name)
    if chains is None:
        raise ValueError(
            f"The prior of {rbm.n_visible} + {m} units does not fit on {name} with its "
            f"{len(graph)} qubits: choose a smaller `n_latent` or `n_prior_hidden`, or "
            "make the model with prior_topology=sampler.graph."
        )
    embedding = Embedding(chains, edges, graph)
    new = Placement(size, edges, embedding, native, sparse=len(edges) < n * m)
    return new, IsingProblem(rbm, edges)


def place(
    edges: np.ndarray, n_visible: int, n_hidden: int, graph: nx.Graph, name: str
) -> tuple[Chains | None, bool]:
    """Qubits of each unit, or ``None`` if there is no room, and whether they are native.

    Native means one qubit for each unit, because the prior was made for such a chip. Other
    complete graphs and complete bipartite graphs get the short chains of busclique, and all
    others those of minorminer.

    Parameters
    ----------
    edges
        Coupled pairs of units, visible ones counted first.
    n_visible
        Visible units; 0 if all units are coupled to one another.
    n_hidden
        Other units.
    graph
        The chip's working graph.
    name
        Name of the chip, which becomes part of a file name.
    """
    n, m = n_visible, n_hidden
    if 0 < len(edges) < n * m:
        chains = native_chains(edges - [0, n], n, m, graph)
        if chains is not None:
            return chains, True
    if n + m > len(graph):
        return None, False
    ways: dict[str, tuple[Callable[[], Chains | None], np.ndarray]] = {}
    if 0 < 2 * len(edges) < n * m or graph.graph.get("family") not in TOPOLOGIES:
        ways["sparse"] = lambda: sparse_chains(edges, n + m, graph), edges  # slow, but any graph
    if graph.graph.get("family") in TOPOLOGIES:
        ways["dense"] = lambda: dense_chains(n, m, graph), np.array([n, m])
    for way, (find, problem) in ways.items():
        chains = cached(find, f"{name}-{way}-{n}-{m}", problem, graph)
        if chains is not None:
            return chains, False
    return None, False


def native_chains(
    nonzero: np.ndarray, n_visible: int, n_hidden: int, graph: nx.Graph
) -> Chains | None:
    """One qubit for each unit if the couplings are those of a native prior, else ``None``.

    Parameters
    ----------
    nonzero
        Coupled pairs (visible unit, hidden unit).
    n_visible
        Visible units.
    n_hidden
        Hidden units.
    graph
        The chip's working graph.
    """
    if graph.graph.get("family") not in TOPOLOGIES:
        return None
    # made for this chip, or for an ideal chip of the same design, which may fit anywhere on it
    for topology in (graph, graph.graph["family"]):
        try:
            layout = native_layout(topology, n_visible, n_hidden)
        except ValueError:
            continue  # too few qubits left
        edges = np.stack([layout.rows, layout.columns], 1)
        if (find_pairs(nonzero, edges, max(n_visible, n_hidden)) < 0).any():
            continue
        units = np.concatenate([layout.visible, layout.hidden]).tolist()
        ends = np.stack([layout.visible[layout.rows], layout.hidden[layout.columns]], 1).tolist()
        for qubit in [lambda q: q] if topology is graph else _translations(layout.graph, graph):
            moved = [qubit(q) for q in units]
            if all(q in graph for q in moved) and all(
                graph.has_edge(qubit(u), qubit(v)) for u, v in ends
            ):
                return [[q] for q in moved]
    return None


def dense_chains(n_visible: int, n_hidden: int, graph: nx.Graph) -> Chains | None:
    """Short chains that couple all visible units to all hidden units.

    Without visible units, they couple all hidden units to each other. Small windows of the chip
    are tried first: chains are as long as the window is wide, and busclique's table of all sizes
    takes minutes on a whole chip but a second on a window.
    """
    from minorminer.busclique import busgraph_cache

    family, rows = graph.graph["family"], graph.graph["rows"]
    least = max(2, -(-max(n_visible, n_hidden) // 16))  # a window of size m holds K(16 m, 16 m)
    for size in range(min(least, rows), rows + 1):
        window = ideal_graph(family, size)
        for qubit in islice(_translations(window, graph), _WINDOWS):
            there = {q: qubit(q) for q in window}
            part = window.subgraph(q for q in window if there[q] in graph).copy()
            part.remove_edges_from(
                [(u, v) for u, v in part.edges if not graph.has_edge(there[u], there[v])]
            )
            table = busgraph_cache(part)
            if n_visible:
                found = table.find_biclique_embedding(n_visible, n_hidden)
            else:
                found = table.find_clique_embedding(n_hidden)
            if len(found) == n_visible + n_hidden:
                return [[there[q] for q in found[i]] for i in range(len(found))]
    return None


def sparse_chains(
    edges: np.ndarray, n_units: int, graph: nx.Graph, seed: int = 0
) -> Chains | None:
    """Chains by minorminer's heuristic, for couplings that are neither complete nor native."""
    import networkx as nx
    from minorminer import find_embedding

    source = nx.Graph(map(tuple, edges.tolist()))
    source.add_nodes_from(range(n_units))
    found = find_embedding(source, graph, timeout=_PATIENCE, random_seed=seed)
    return [list(found[i]) for i in range(n_units)] if found else None


def _translations(source: nx.Graph, chip: nx.Graph) -> Iterator:
    """Maps from a smaller chip's qubits to those of a larger one, central places first."""
    import dwave.graphs

    if source.graph["rows"] > chip.graph["rows"]:
        return
    mappings = getattr(dwave.graphs, f"{chip.graph['family']}_sublattice_mappings")
    offsets = [mapping.offset for mapping in mappings(source, chip)]
    middle = np.mean([np.ravel(offset) for offset in offsets], axis=0)
    offsets.sort(key=lambda offset: float(np.abs(np.ravel(offset) - middle).sum()))
    yield from mappings(source, chip, offset_list=offsets)


def cached(find, name: str, problem: np.ndarray, graph: nx.Graph) -> Chains | None:
    """The result of ``find()``, read from disk if it was found before.

    Parameters
    ----------
    find
        Returns chains or ``None``.
    name
        Chip and problem, for the name of the file.
    problem
        The numbers that determine the chains, apart from the graph.
    graph
        The chip's working graph. If a qubit fails, the chains go to another file.
    """
    digest = hashlib.sha256(np.ascontiguousarray(problem, dtype=np.int64).tobytes())
    for part in (sorted(graph), sorted(sorted(edge) for edge in graph.edges)):
        digest.update(np.array(part, dtype=np.int64).tobytes())
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    file = cache_folder() / f"{safe}-{digest.hexdigest()[:16]}.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        pass
    chains = find()
    if chains is not None:
        chains = [[int(q) for q in chain] for chain in chains]
        _write(file, json.dumps(chains))
    return chains


def cache_folder() -> Path:
    """The folder of stored embeddings: in ``$SCQBM_CACHE``, or in the platform's cache folder."""
    import homebase

    given = os.environ.get(CACHE_VARIABLE)
    folder = given or homebase.user_cache_dir("scqbm", "scqbm", use_virtualenv=False)
    return Path(folder) / "embeddings"


def _write(file: Path, text: str) -> None:
    """Write the whole file at once, as another process may read or write it too."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as part:
            part.write(text)
        os.replace(part.name, file)
    except OSError:
        pass  # without a place to write, the chains are searched again next time
