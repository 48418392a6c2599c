"""What QPUSampler adds to a query of a processor, hardware time left out.

OMP_NUM_THREADS=1 python benchmarks/samplers/qpu_overhead.py

The processor is a stand-in on the graph of a Zephyr Z15 with missing qubits that returns stored
reads at once; what it takes itself is subtracted. Beside it in the same run, in turn (A B A B):
Ocean's FixedEmbeddingComposite on the same stand-in and embedding, from a ready logical model to
its answer, so without making that model, estimating the temperature or making bits, all of which
QPUSampler's figure includes. Medians of processor time on one thread, which a busy machine
changes little. Writes results/qpu_overhead.csv anew.
"""

import argparse
import importlib.metadata
import platform
import statistics
import time
from pathlib import Path

import dimod
import dwave.graphs
import numpy as np
import pandas as pd
import torch
from dwave.system import FixedEmbeddingComposite

from scqbm.ising import RBM, bits_to_spins
from scqbm.samplers import GibbsSampler, QPUSampler
from scqbm.samplers.ocean import _chip, _embedding, _problem, _qpu

RESULTS = Path(__file__).parents[1] / "results" / "qpu_overhead.csv"
PACKAGES = ["scqbm", "dwave-system", "dimod", "minorminer", "numpy", "torch"]
N_READS, ROUNDS = 256, 15
STEPS = {  # where the time goes: what is clocked, by name
    "problem from the RBM": (_problem.IsingProblem, "__init__"),
    "biases of the chip": (_embedding.Embedding, "program"),
    "limits of the chip": (_chip.Chip, "possible_scale"),
    "model for Ocean": (dimod.BQM, "from_numpy_vectors"),
    "order of the answer": (_chip, "_in_order"),
    "vote of the chains": (_embedding.Embedding, "vote"),
    "temperature": (_qpu, "effective_beta"),
}


class Canned(dimod.Sampler, dimod.Structured):
    """Returns stored reads of these units, each repeated along its chain."""

    nodelist = edgelist = None
    parameters = dict.fromkeys(["num_reads", "auto_scale", "answer_mode"], ())
    properties = {
        "chip_id": "stand-in",
        "topology": {"type": "zephyr", "shape": [15, 4]},
        "h_range": [-4.0, 4.0],
        "j_range": [-1.0, 1.0],
        "extended_j_range": [-2.0, 1.0],
        "per_qubit_coupling_range": [-18.0, 15.0],
        "num_reads_range": [1, 10_000],
    }

    def __init__(self, graph):
        self.nodelist = sorted(graph)
        self.edgelist = sorted(tuple(sorted(edge)) for edge in graph.edges)
        self.seconds = 0.0
        self.stored = {}

    def store(self, spins, embedding):
        self.unit = {q: i for i, chain in embedding.items() for q in chain}
        self.spins, self.stored = spins, {}

    def sample(self, bqm, **parameters):
        start = time.process_time()
        who = parameters["answer_mode"]  # each rival keeps to one order of the qubits
        if who not in self.stored:
            columns = [self.unit.get(q, 0) for q in bqm.variables]
            reads = np.ascontiguousarray(self.spins[: parameters["num_reads"], columns])
            self.stored[who] = dimod.SampleSet.from_samples(
                (reads, list(bqm.variables)), "SPIN", np.zeros(len(reads)), sort_labels=False
            )
        answer = self.stored[who].copy()
        self.seconds += time.process_time() - start
        return answer


def clocked(spent):
    """Make every step note its processor time in ``spent``; returns what undoes it."""
    undo = []
    for step, (owner, name) in STEPS.items():
        original = owner.__dict__.get(name) or getattr(owner, name)
        call = getattr(owner, name) if isinstance(original, classmethod) else original

        def timed(*args, _step=step, _call=call, **kwargs):
            start = time.process_time()
            try:
                return _call(*args, **kwargs)
            finally:
                spent[_step] = spent.get(_step, 0.0) + time.process_time() - start

        setattr(owner, name, staticmethod(timed) if isinstance(original, classmethod) else timed)
        undo.append((owner, name, original))
    return lambda: [setattr(owner, name, original) for owner, name, original in undo]


def measure(n, graph):
    """Rows of one size: both rivals and the steps of ours."""
    g = torch.Generator().manual_seed(0)
    rbm = RBM(*(0.1 * torch.randn(shape, generator=g) for shape in (n, n, (n, n))))
    child = Canned(graph)
    sampler = QPUSampler(child)
    child.unit, child.spins = {}, np.ones((N_READS, 2 * n), dtype=np.int8)
    start = time.perf_counter()
    sampler.sample(rbm, N_READS, None, g)
    first = time.perf_counter() - start
    draws = GibbsSampler(100).sample(rbm, N_READS, None, g)
    spins = bits_to_spins(torch.cat([draws.visible, draws.hidden], 1)).numpy().astype(np.int8)
    child.store(spins, sampler.embedding)
    problem = _problem.IsingProblem(rbm, _problem.coupled_pairs(rbm))
    ends = problem.edges.T
    model = dimod.BQM.from_numpy_vectors(problem.fields, (*ends, problem.couplings), 0.0, "SPIN")
    composite = FixedEmbeddingComposite(child, sampler.embedding)
    state = {"scale": 0.5, "n_seen": 50}

    def ocean():
        composite.sample(
            model, num_reads=N_READS, chain_strength=4.0, answer_mode="ocean", auto_scale=False
        ).resolve()

    rivals = {
        "QPUSampler": lambda: sampler.sample(rbm, N_READS, state, g),
        "FixedEmbeddingComposite": ocean,
    }
    took = {name: [] for name in rivals}
    for k in range(ROUNDS + 1):
        for name, run in rivals.items():
            child.seconds, start = 0.0, time.process_time()
            run()
            if k:  # the first round warms up
                took[name].append(time.process_time() - start - child.seconds)
    spent = {}
    undo = clocked(spent)
    for _ in range(ROUNDS):
        sampler.sample(rbm, N_READS, state, g)
    undo()
    median = {name: statistics.median(seconds) for name, seconds in took.items()}
    steps = {step: seconds / ROUNDS for step, seconds in spent.items()}
    steps["the rest"] = max(0.0, median["QPUSampler"] - sum(steps.values()))
    rows = [
        *((f"query of {name}", 1000 * s) for name, s in median.items()),
        *((f"of which {step}", 1000 * s) for step, s in steps.items()),
    ]
    n_qubits = sum(map(len, sampler.embedding.values()))
    ratio = median["FixedEmbeddingComposite"] / median["QPUSampler"]
    print(f"\n{n} + {n} units on {n_qubits} qubits, {N_READS} reads; first query {first:.1f} s")
    for what, milliseconds in rows:
        print(f"  {what:32} {milliseconds:8.2f} ms")
    print(f"  FixedEmbeddingComposite takes {ratio:.1f} times as long")
    size = {"units": f"{n}+{n}", "qubits": n_qubits, "reads": N_READS}
    rows = [{**size, "what": what, "milliseconds": ms} for what, ms in rows]
    return [*rows, {**size, "what": "FixedEmbeddingComposite / QPUSampler", "ratio": ratio}]


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    graph = dwave.graphs.zephyr_graph(15)
    graph.remove_nodes_from(np.random.default_rng(0).choice(list(graph), 75, replace=False))
    rows = [row for n in (64, 128) for row in measure(n, graph)]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    table = pd.DataFrame(rows).assign(**versions, python=platform.python_version())
    RESULTS.parent.mkdir(exist_ok=True)
    table.to_csv(RESULTS, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
