"""Questions to a structured Ocean sampler, usually a processor, and all that can go wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from scqbm._checks import is_number
from scqbm.samplers._redact import reason
from scqbm.samplers.ocean._cloud import (
    BadAnswer,
    cancel,
    faults,
    is_hopeless,
    may_have_run,
    tokens,
)

if TYPE_CHECKING:
    import dimod
    import networkx as nx

_NO_LIMIT = 1e6  # where arithmetic must stay finite
# The assumed cost of a question if nothing is known: seconds to program, and for each read seconds
# to read out and wait and seconds to anneal. These are on the high side for D-Wave's processors.
_PROGRAMMING, _READ, _ANNEAL = 0.02, 2e-4, 2e-5


class Outage(RuntimeError):
    """The chip gave no usable answer."""


class BudgetSpent(Outage):
    """The chip may not be asked any more."""


class Chip:
    """Asks until all reads are there: batches, retries, short answers, time-outs and budget.

    With a budget, :attr:`seconds` also counts what the chip does not report: answers without
    timing, and questions without an answer, unless they cannot have run. Each counts as the
    solver estimates it, else as the longest answer so far, else as a typical processor would
    take.

    Parameters
    ----------
    child
        A structured dimod sampler: ``DWaveSampler``, ``MockDWaveSampler``.
    parameters
        Passed to ``child.sample``.
    retries
        How many times a question that failed is asked again.
    backoff
        Seconds before the first retry; doubled for each further one.
    timeout
        Seconds to wait for an answer, which is then cancelled.
    max_qpu_time
        Most seconds of processor time; ``None`` for no limit.
    """

    def __init__(
        self,
        child: dimod.Structured,
        parameters: dict,
        retries: int,
        backoff: float,
        timeout: float,
        max_qpu_time: float | None,
    ):
        self.child = child
        self.retries = retries
        self.backoff = backoff
        self.timeout = timeout
        self.max_qpu_time = math.inf if max_qpu_time is None else max_qpu_time
        self.seconds = 0.0  # of processor time
        self.reports_time = True  # until an answer comes without timing
        self._longest = 0.0  # of the answers, in seconds
        # no rescaling by the chip, and every read on its own, if the child has these parameters
        ours = {"auto_scale": False, "answer_mode": "raw"}
        self.parameters = {k: v for k, v in ours.items() if k in child.parameters} | parameters

    @property
    def name(self) -> str:
        """Name of the chip."""
        return str(self.child.properties.get("chip_id", type(self.child).__name__))

    @cached_property
    def graph(self) -> nx.Graph:
        """Working qubits and couplers."""
        topology = self.child.properties.get("topology")
        if topology:
            from dwave.system import qpu_graph

            nodes, edges = self.child.nodelist, self.child.edgelist
            return qpu_graph(topology["type"], topology["shape"], nodes, edges)
        import networkx as nx

        graph = nx.Graph(self.child.edgelist)
        graph.add_nodes_from(self.child.nodelist)
        return graph

    def _range(self, *names: str) -> tuple[float, float]:
        """Sizes of the ends of the first range that the chip's properties state, else no limit."""
        stated = [self.child.properties[name] for name in names if name in self.child.properties]
        low, high = stated[0] if stated else (-math.inf, math.inf)
        return -float(low), float(high)

    @cached_property
    def strongest_chain(self) -> float:
        """The strongest coupling within a chain."""
        return min(self._range("extended_j_range", "j_range")[0], _NO_LIMIT)

    def possible_scale(
        self, bias: float, coupler: float, load: np.ndarray, chain_neighbours: np.ndarray
    ) -> float:
        """Largest factor on biases and couplers within all ranges, whatever their signs.

        Parameters
        ----------
        bias
            Size of the largest bias.
        coupler
            Size of the largest coupler outside chains.
        load
            For each qubit, the sum of these couplers' sizes.
        chain_neighbours
            For each qubit, the number of couplers that hold it in its chain.
        """
        low, high = self._range("per_qubit_coupling_range")
        room = np.minimum(low - chain_neighbours * self.strongest_chain, high)
        needs = [(min(self._range("h_range")), bias), (min(self._range("j_range")), coupler)]
        return min(
            *(limit / size if size > 0 else math.inf for limit, size in needs),
            float((room / np.maximum(load, 1e-30)).min()),
        )

    @cached_property
    def most_reads(self) -> int:
        """Most reads that one question may ask for."""
        solver: Any = getattr(self.child, "solver", None)
        if callable(getattr(solver, "max_num_reads", None)):  # includes the limit on duration
            return int(solver.max_num_reads(**self.parameters))
        return int(self.child.properties.get("num_reads_range", (1, 10_000))[1])

    def ask(
        self,
        qubits: np.ndarray,
        biases: np.ndarray,
        couplers: tuple[np.ndarray, np.ndarray, np.ndarray],
        n_reads: int,
        seed: int,
    ) -> np.ndarray:
        """Spins of the qubits: ``n_reads`` rows, or fewer after many short answers.

        Parameters
        ----------
        qubits
            Labels.
        biases
            One for each qubit.
        couplers
            Positions of both ends in ``qubits``, and values.
        n_reads
            Number of reads.
        seed
            Used by children that take a seed.
        """
        import dimod

        model = dimod.BQM.from_numpy_vectors(
            biases, couplers, 0.0, "SPIN", variable_order=qubits.tolist()
        )
        reads: list[np.ndarray] = []
        missing, failures, gone = n_reads, 0, None
        while missing > 0 and failures <= self.retries:
            wanted = min(missing, self.most_reads)
            try:
                got = self._once(model, qubits, wanted, (seed + len(reads) + failures) % 2**31)
            except BudgetSpent:
                if not reads:
                    raise
                break
            except faults() as error:
                failures = self.retries + 1 if is_hopeless(error) else failures + 1
                if failures <= self.retries:
                    time.sleep(self.backoff * 2 ** (failures - 1))
                gone = self.reason(error)
                continue
            failures += len(got) < wanted
            reads.append(got[:wanted])
            missing -= len(reads[-1])
        if not reads:  # raised here: inside `except` the client's error would be its context
            raise Outage(gone)
        return np.concatenate(reads)

    def _once(self, model: dimod.BQM, qubits: np.ndarray, n_reads: int, seed: int) -> np.ndarray:
        size = len(qubits), n_reads
        if self.seconds >= self.max_qpu_time or (
            self.seconds + self._expected(*size) > self.max_qpu_time
        ):
            raise BudgetSpent(
                f"{self.seconds:.3g} s of the {self.max_qpu_time:.3g} s of processor time that "
                "`max_qpu_time` allows are spent"
            )
        given = {"num_reads": n_reads, **self.parameters}
        if "seed" in self.child.parameters:
            given.setdefault("seed", seed)
        answer = None
        try:
            answer = self.child.sample(model, **given)
            self._wait_for(answer)
        except BaseException as error:  # Ctrl-C too: nobody waits for the answer any more
            if answer is not None:
                cancel(answer)
            if may_have_run(answer, error):
                self._count(self._guessed(*size))
            raise
        used = _reported(answer)
        self.reports_time &= used is not None
        self._count(self._guessed(*size) if used is None else used)
        return _in_order(answer, qubits)

    def _count(self, seconds: float) -> None:
        self.seconds += seconds
        self._longest = max(self._longest, seconds)

    def _expected(self, n_qubits: int, n_reads: int) -> float:
        """Processor time of a question, before it is asked."""
        if self.max_qpu_time == math.inf:
            return 0.0
        try:
            estimate = self.child.solver.estimate_qpu_access_time
            seconds = estimate(n_qubits, n_reads, **self.parameters) / 1e6
        except (AttributeError, KeyError, TypeError, ValueError):
            return self._longest
        return seconds if math.isfinite(seconds) else self._longest

    def _guessed(self, n_qubits: int, n_reads: int) -> float:
        """Processor time of a question that was asked, where the chip does not report it."""
        if self.max_qpu_time == math.inf:
            return 0.0
        given: Any = self.parameters.get("annealing_time")  # in microseconds
        anneal = given / 1e6 if is_number(given) else _ANNEAL
        return self._expected(n_qubits, n_reads) or _PROGRAMMING + n_reads * (_READ + anneal)

    def _wait_for(self, answer: dimod.SampleSet) -> None:
        end, pause = time.monotonic() + self.timeout, 1e-4
        while not answer.done():
            if time.monotonic() > end:
                raise TimeoutError(f"no answer within {self.timeout} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        answer.resolve()

    def secrets(self) -> list[str | None]:
        """Access tokens that the child holds."""
        return tokens(self.child)

    def reason(self, error: Exception) -> str:
        """What an error says, without any token."""
        return reason(error, self.secrets())


def _reported(answer: dimod.SampleSet) -> float | None:
    """Seconds of processor time that an answer reports, if it does."""
    timing = (answer.info or {}).get("timing")
    used: Any = timing.get("qpu_access_time") if isinstance(timing, Mapping) else None
    return used / 1e6 if is_number(used) and 0 <= used < math.inf else None


def _in_order(answer: dimod.SampleSet, qubits: np.ndarray) -> np.ndarray:
    """Reads as spins in the order of ``qubits``, whatever the answer's order."""
    labels, spins = np.array(list(answer.variables)), answer.record.sample
    if not np.array_equal(labels, qubits):
        order = np.argsort(labels)
        place = np.searchsorted(labels, qubits, sorter=order)
        place = order[np.minimum(place, len(labels) - 1)] if len(labels) else place
        if len(labels) == 0 or (labels[place] != qubits).any():
            raise BadAnswer("the answer lacks qubits that were asked for")
        spins = spins[:, place]
    if len(spins) == 0:
        raise BadAnswer("the answer is empty")
    if (np.abs(spins) != 1).any():
        raise BadAnswer("the answer holds values other than -1 and +1")
    times = answer.record.num_occurrences
    return spins if (times == 1).all() else np.repeat(spins, times, axis=0)
