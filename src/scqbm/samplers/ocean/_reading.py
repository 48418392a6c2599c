"""One round of reads: gauges, chains put to the vote, broken reads discarded or minimised."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scqbm.samplers.ocean._chip import Chip
from scqbm.samplers.ocean._embedding import Embedding
from scqbm.samplers.ocean._problem import IsingProblem

CHAIN_BREAKS = ("vote", "discard", "minimize")
_FIRM = 1.5  # in units of the temperature: weaker chains break, stronger ones freeze too early
_MOST = 4  # times as many reads as draws, where broken ones are discarded


@dataclass
class Reads:
    """Spins of the units, read from a chip.

    Parameters
    ----------
    spins
        One row for each read.
    broken
        Fraction of broken chains.
    scale
        Factor between the prior's energy and what was programmed.
    remarks
        Topic and text of each warning that the user should get.
    """

    spins: np.ndarray
    broken: float
    scale: float
    remarks: list[tuple[str, str]] = field(default_factory=list)


def read(
    chip: Chip,
    embedding: Embedding,
    problem: IsingProblem,
    scale: float,
    n_reads: int,
    rng: np.random.Generator,
    chain_strength: float | None,
    chain_breaks: str,
    n_gauges: int,
) -> Reads:
    """Program a problem and read ``n_reads`` states of its units.

    Parameters
    ----------
    chip
        The chip.
    embedding
        Chains of qubits.
    problem
        Fields and couplings of the units.
    scale
        Factor on them; a smaller one is used where the chip's ranges do not allow it.
    n_reads
        Number of reads.
    rng
        Source of the gauges, of ties and of seeds.
    chain_strength, chain_breaks, n_gauges
        As in :class:`~scqbm.samplers.QPUSampler`.
    """
    remarks = []
    strain = embedding.strain(*embedding.program(problem.fields, problem.couplings, 0.0))
    possible = chip.possible_scale(*strain, embedding.chain_neighbours)
    wanted, scale = scale, min(scale, possible)
    if scale < 0.9 * wanted:
        text = (
            f"The prior's fields or couplings exceed the range of {chip.name}: its draws are "
            f"hotter than the prior, now at {scale / wanted:.2f} of its inverse temperature."
        )
        remarks.append(("range", text))
    strength = chain_strength or max(_FIRM, problem.torque())
    discard = chain_breaks == "discard"
    spins, broken, asked, good = [], [], 0, 0
    while good < n_reads and asked < (_MOST if discard else 1) * n_reads:
        for part in np.array_split(np.arange(n_reads - good), max(1, n_gauges)):
            if len(part) == 0:
                continue
            gauge = rng.choice([-1.0, 1.0], problem.n) if n_gauges else np.ones(problem.n)
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
            text = (
                f"Only {good} of {asked} reads from {chip.name} had all chains whole: the "
                "least broken ones are used as well, by majority vote. Raise `chain_strength`."
            )
            remarks.append(("discard", text))
    elif chain_breaks == "minimize":
        problem.minimize(spins, broken)
    if len(spins) < n_reads:
        text = (
            f"{chip.name} keeps returning fewer reads than asked for ({len(spins)} instead "
            f"of {n_reads}): some are used more than once."
        )
        remarks.append(("short", text))
        again = rng.integers(len(spins), size=n_reads - len(spins))
        spins = np.concatenate([spins, spins[again]])
    return Reads(spins, fraction, scale, remarks)
