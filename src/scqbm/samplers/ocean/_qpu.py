"""A D-Wave quantum annealer as a sampler of the prior."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from scqbm._checks import at_least, one_of, positive
from scqbm.ising import RBM, effective_beta, spins_to_bits
from scqbm.samplers._adapt import rescaled
from scqbm.samplers._base import Draws, Sampler
from scqbm.samplers._gibbs import GibbsSampler
from scqbm.samplers.ocean._chip import BudgetSpent, Chip, Outage, redacted
from scqbm.samplers.ocean._embedding import Embedding
from scqbm.samplers.ocean._placing import place
from scqbm.samplers.ocean._problem import IsingProblem, coupled_pairs

if TYPE_CHECKING:
    import dimod
    import networkx as nx

CHAIN_BREAKS = ("vote", "discard", "minimize")
_FIRM = 1.5  # in units of the temperature: below, chains fray; above, they freeze before the rest
_PILOTS = 2  # rounds before the first query, to find the temperature
_PILOT_READS = 128
_FRAYED = 0.25  # fraction of broken chains worth a warning
_MOST = 4  # times as many reads as draws, where broken ones are discarded
_PREFIX = "fallback."


class QPUSampler(Sampler):
    """Drives a D-Wave processor, or any other structured Ocean sampler.

    A processor draws at a temperature of its own, from couplings of limited range, between
    qubits of which each has few neighbours, over a line that may fail. Hence:

    * *Embedding*: each unit is a chain of qubits, found once for each chip and size, kept on disk
      (``$SCQBM_CACHE`` or the platform's cache folder) and reused while the couplings change. A
      prior on the chip's own graph (``prior_topology``) takes one qubit a unit. A Gaussian layer
      is integrated out, which leaves a clique of hidden bits, and drawn given them.
    * *Temperature*: the effective inverse temperature of the reads (maximum pseudolikelihood of
      the units' problem) is fed back into the scale of what is programmed, so that draws follow
      temperature 1 as closely as the chip's ranges allow.
    * *Faults*: failed questions are asked again, short answers topped up; when the processor stays
      away, or its time is spent, ``fallback`` draws instead, which a warning says once.

    Access tokens stay within ``child``, which neither pickles nor copies take along.

    ``info`` holds ``beta`` (effective inverse temperature of the draws), ``scale`` (of what was
    programmed), ``chain_break_fraction``, ``energy`` (mean), ``qpu_seconds`` (processor time so
    far), ``on_qpu`` (1, or 0 where the fallback drew) and ``seconds``.

    Parameters
    ----------
    child
        A ``dwave.system.DWaveSampler``, a ``MockDWaveSampler`` or another structured sampler with
        integer labels; :meth:`from_cloud` makes the first.
    beta
        Inverse temperature of the chip to begin with, in units of its couplings; learnt from the
        reads thereafter.
    adapt
        Whether to learn it.
    chain_strength
        Coupling within chains in units of the temperature at which draws are wanted. By default
        the larger of 1.5 and Ocean's uniform torque compensation with prefactor 1. That is weaker
        than for optimisation: some chains break, but firm ones freeze early in the anneal, and
        their draws are then further from the prior.
    chain_breaks
        What to do with reads whose chains disagree: ``"vote"`` takes the majority of each chain
        (ties at random); ``"discard"`` drops the read and asks for more; ``"minimize"`` sets the
        broken units one by one to their best value, which is colder than the prior.
    n_gauges
        Spin-reversal transforms a query, each drawn anew; 0 for none.
    max_qpu_time
        Seconds of processor access time that this sampler may use in all.
    retries
        How often a question that failed is asked again.
    backoff
        Seconds before the first retry, doubled for each further one.
    timeout
        Seconds to wait for an answer.
    fallback
        Sampler that steps in; by default :class:`~scqbm.samplers.GibbsSampler`. ``"raise"`` stops
        instead.
    retry_every
        After an outage the fallback draws for so many queries before the processor is tried again.
    **parameters
        Passed to ``child.sample`` at each query, for example ``annealing_time=100``.
    """

    def __init__(
        self,
        child: dimod.Structured,
        beta: float = 4.0,
        adapt: bool = True,
        chain_strength: float | None = None,
        chain_breaks: Literal["vote", "discard", "minimize"] = "vote",
        n_gauges: int = 1,
        max_qpu_time: float | None = None,
        retries: int = 3,
        backoff: float = 1.0,
        timeout: float = 600.0,
        fallback: Sampler | Literal["raise"] | None = None,
        retry_every: int = 20,
        **parameters,
    ):
        if not all(hasattr(child, name) for name in ("sample", "nodelist", "edgelist")):
            raise TypeError(
                f"`child` must be a structured dimod sampler such as DWaveSampler, which "
                f"{type(child).__name__} is not: give it to DimodSampler."
            )
        one_of("chain_breaks", chain_breaks, CHAIN_BREAKS)
        at_least("n_gauges", n_gauges, 0)
        at_least("retries", retries, 0)
        at_least("backoff", backoff, 0)
        at_least("retry_every", retry_every, 1)
        if max_qpu_time is not None:
            at_least("max_qpu_time", max_qpu_time, 0)
        positive("beta", beta)
        positive("timeout", timeout)
        if chain_strength is not None:
            positive("chain_strength", chain_strength)
        for name in ("num_reads", "auto_scale", "seed"):
            if name in parameters:
                raise ValueError(f"`{name}` is set by QPUSampler itself: leave it out.")
        if fallback != "raise" and not callable(getattr(fallback or Sampler, "sample", None)):
            raise TypeError(f"`fallback` must be a sampler or 'raise', not {fallback!r}.")
        self.beta = beta
        self.adapt = adapt
        self.chain_strength = chain_strength
        self.chain_breaks = chain_breaks
        self.n_gauges = n_gauges
        self.fallback = GibbsSampler() if fallback is None else fallback
        self.retry_every = retry_every
        self._chip: Chip | None = Chip(child, parameters, retries, backoff, timeout, max_qpu_time)
        self._name = self._chip.name
        self._placed: tuple[tuple, np.ndarray | None, Embedding] | None = None
        self._said: set[str] = set()

    @classmethod
    def from_cloud(
        cls,
        solver: str | dict | None = None,
        token: str | None = None,
        region: str | None = None,
        endpoint: str | None = None,
        **kwargs,
    ) -> QPUSampler:
        """A sampler on one of D-Wave's processors.

        Parameters
        ----------
        solver
            Name or features, as :class:`dwave.system.DWaveSampler` takes them; by default the
            processor with most qubits.
        token
            Access token, handed to D-Wave's client and kept nowhere else. Better left out and set
            as ``DWAVE_API_TOKEN`` or in Ocean's configuration file.
        region, endpoint
            As :class:`dwave.system.DWaveSampler` takes them.
        **kwargs
            Those of :class:`QPUSampler`.
        """
        from dwave.system import DWaveSampler

        given = {"solver": solver, "token": token, "region": region, "endpoint": endpoint}
        try:
            child = DWaveSampler(**{k: v for k, v in given.items() if v is not None})
        except Exception as error:
            raise ConnectionError(
                f"D-Wave's client could not connect ({redacted(str(error), token)}): check "
                "`solver`, `region` and the token in DWAVE_API_TOKEN."
            ) from None
        return cls(child, **kwargs)

    def __repr__(self) -> str:
        return (
            f"QPUSampler({self._name!r}, chain_breaks={self.chain_breaks!r}, "
            f"n_gauges={self.n_gauges}, fallback={self.fallback!r})"
        )

    def __getstate__(self) -> dict:
        """Everything but the line to the processor, which holds the token."""
        return {**self.__dict__, "_chip": None}

    @property
    def graph(self) -> nx.Graph:
        """The chip's working graph; as ``prior_topology`` it makes a prior that avoids faults."""
        return self._connected().graph

    @property
    def qpu_seconds(self) -> float:
        """Processor access time used so far."""
        return self._connected().seconds

    @property
    def embedding(self) -> dict[int, list[int]] | None:
        """Qubits of each unit, visible ones first, as the last query used them."""
        return None if self._placed is None else dict(enumerate(self._placed[2].chains))

    @torch.no_grad()
    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: dict[str, Tensor | int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Query the processor, or the fallback in its absence; see :meth:`Sampler.sample`."""
        began = time.perf_counter()
        chip = self._connected()
        state = state or {}
        # the budget outlives both: this object's other fits, and the process that a resume ends
        chip.seconds = max(chip.seconds, float(state.get("qpu_seconds", 0.0)))
        kept = {k: state[k] for k in ("scale", "n_seen") if k in state}
        rest = int(state.get("rest", 0))
        if rest == 0:
            try:
                draws = self._query(chip, rbm, n_draws, kept, generator)
            except Outage as error:
                self._report(error)
                rest = self.retry_every
        if rest > 0:
            theirs = {
                k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)
            }
            draws = self.fallback.sample(rbm, n_draws, theirs or None, generator)
            draws.state = {_PREFIX + k: v for k, v in draws.state.items()} | kept
            draws.state["rest"] = rest - 1
            draws.info["energy"] = rbm.energy(draws.visible, draws.hidden).mean().item()
        draws.state["qpu_seconds"] = torch.tensor(chip.seconds, dtype=torch.float64)
        draws.info |= {
            "on_qpu": float(rest == 0),
            "qpu_seconds": chip.seconds,
            "seconds": time.perf_counter() - began,
        }
        return draws

    # -- one query -----------------------------------------------------------------------------

    def _query(
        self, chip: Chip, rbm: RBM, n_draws: int, kept: dict, generator: torch.Generator | None
    ) -> Draws:
        # one number from the generator, on its own device, seeds everything but Gaussian units
        seed = torch.randint(2**62, (), generator=generator, device=rbm.W.device)
        rng = np.random.default_rng(int(seed))
        embedding, problem = self._embed(chip, rbm)
        scale, n_seen = float(kept.get("scale", 1 / self.beta)), int(kept.get("n_seen", 0))
        pilots = _PILOTS if self.adapt and not kept else 0
        for n_reads in [max(n_draws, _PILOT_READS)] * pilots + [n_draws]:
            spins, broken, used = self._read(chip, embedding, problem, scale, n_reads, rng)
            bits = spins_to_bits(torch.from_numpy(spins.astype(np.float64))).to(rbm.W)
            layers = (bits, bits) if rbm.gaussian else bits.tensor_split([rbm.n_visible], 1)
            beta = effective_beta(rbm, *layers)  # which asks Gaussian units for nothing
            if self.adapt:  # at the wanted scale beta would have been larger in proportion
                scale, n_seen = rescaled(scale, beta * scale / used, n_seen)
        visible, hidden = layers
        if rbm.gaussian:
            visible = rbm.draw_visible(hidden, generator)
        if broken > _FRAYED:
            self._say(
                "breaks",
                f"{broken:.0%} of the chains on {self._name} broke, so its draws are doubtful: "
                "raise `chain_strength`, or need no chains (bits with prior_topology).",
            )
        info = {
            "beta": beta,
            "scale": used,
            "chain_break_fraction": broken,
            "energy": rbm.energy(visible, hidden).mean().item(),
        }
        learnt = {"scale": torch.tensor(scale, dtype=torch.float64), "n_seen": n_seen}
        return Draws(visible, hidden, learnt, info=info)

    def _read(
        self,
        chip: Chip,
        embedding: Embedding,
        problem: IsingProblem,
        scale: float,
        n_reads: int,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, float, float]:
        """Spins of the units, the fraction of broken chains and the scale that was possible."""
        strain = embedding.strain(*embedding.program(problem.fields, problem.couplings, 0.0))
        possible = chip.possible_scale(*strain, embedding.chain_neighbours)
        wanted, scale = scale, min(scale, possible)
        if scale < 0.9 * wanted:
            self._say(
                "range",
                f"The prior's fields or couplings exceed the range of {self._name}: its draws are "
                f"hotter than the prior, now at {scale / wanted:.2f} of its inverse temperature.",
            )
        strength = self.chain_strength or max(_FIRM, problem.torque())
        discard = self.chain_breaks == "discard"
        spins, broken, asked, good = [], [], 0, 0
        while good < n_reads and asked < (_MOST if discard else 1) * n_reads:
            for part in np.array_split(np.arange(n_reads - good), max(1, self.n_gauges)):
                if len(part) == 0:
                    continue
                gauge = rng.choice([-1.0, 1.0], problem.n) if self.n_gauges else np.ones(problem.n)
                biases, couplers = embedding.program(
                    scale * gauge * problem.fields,
                    scale * problem.couplings * gauge[problem.edges].prod(1),
                    min(strength * scale, chip.strongest_chain),
                )
                ends = embedding.rows, embedding.columns, couplers
                seed = int(rng.integers(2**31))
                reads = chip.ask(embedding.qubits, biases, ends, len(part), seed)
                voted, torn = embedding.vote(reads, rng)
                spins.append(voted * gauge.astype(np.int8))
                broken.append(torn)
                asked += len(part)
                good += int((~torn.any(1)).sum()) if discard else len(reads)
        spins, broken = np.concatenate(spins), np.concatenate(broken)
        fraction = float(broken.mean())
        if discard:  # whole reads in the order they came, then, if need be, the least broken
            order = np.argsort(broken.sum(1), kind="stable")[:n_reads]
            spins, broken = spins[order], broken[order]
            if good < n_reads:
                self._say(
                    "discard",
                    f"Only {good} of {asked} reads from {self._name} had all chains whole: the "
                    "least broken ones fill up, by majority vote. Raise `chain_strength`.",
                )
        elif self.chain_breaks == "minimize":
            problem.minimize(spins, broken)
        if len(spins) < n_reads:
            self._say(
                "short",
                f"{self._name} keeps returning fewer reads than asked for ({len(spins)} instead "
                f"of {n_reads}): some count more than once.",
            )
            again = rng.integers(len(spins), size=n_reads - len(spins))
            spins = np.concatenate([spins, spins[again]])
        return spins, fraction, scale

    def _embed(self, chip: Chip, rbm: RBM) -> tuple[Embedding, IsingProblem]:
        """Chains for this prior, those of the last query if its couplings still lie on them."""
        size = (rbm.n_visible, rbm.n_hidden, rbm.gaussian)
        if self._placed is not None and self._placed[0] == size:
            problem = IsingProblem(rbm, self._placed[1])
            if problem.is_complete:
                return self._placed[2], problem
        edges = coupled_pairs(rbm)
        n, m = (0 if rbm.gaussian else rbm.n_visible), rbm.n_hidden
        chains, native = place(edges, n, m, chip.graph, self._name)
        if chains is None:
            raise ValueError(
                f"The prior of {rbm.n_visible} + {m} units does not fit on {self._name} with its "
                f"{len(chip.graph)} qubits: choose a smaller `n_latent` or `n_prior_hidden`, or "
                "make the model with prior_topology=sampler.graph."
            )
        if len(edges) < n * m and not native:
            self._say(
                "chains",
                f"The prior's couplings do not lie on {self._name} as they are, so its units "
                "become chains of qubits. To need none, make the model with "
                "prior_topology=sampler.graph.",
            )
        self._placed = size, edges, Embedding(chains, edges, chip.graph)
        return self._placed[2], IsingProblem(rbm, edges)

    # -- what is said --------------------------------------------------------------------------

    def _connected(self) -> Chip:
        if self._chip is None:
            raise RuntimeError(
                "This QPUSampler is a copy and has no line to its processor, since copies must "
                "not carry access tokens: make a new one."
            )
        return self._chip

    def _report(self, error: Outage) -> None:
        if self.fallback == "raise":
            raise error
        name = type(self.fallback).__name__
        if isinstance(error, BudgetSpent):
            self._say("budget", f"{error}, so {name} draws from now on.")
        else:
            self._say(
                "outage",
                f"{self._name} does not answer ({error}), so {name} draws instead; the processor "
                f"is tried again every {self.retry_every} queries.",
            )

    def _say(self, topic: str, text: str) -> None:
        """Warn, once a topic."""
        if topic not in self._said:
            self._said.add(topic)
            warnings.warn(text, UserWarning, stacklevel=2)
