"""How far each sampler is from the quantum prior, whose hidden units are in a transverse field.

python benchmarks/samplers/transverse.py [--seeds 0 1 2]

Machines of 6 + 4 units with couplings of standard deviation 2 and biases of standard deviation 1,
and one field for all hidden units. `assess` measures each sampler against exact sums: root mean
square errors of first and second moments over 1,000 reads. The last sampler shows what an ideal
processor would give whose anneal pauses at this field: exact draws from the machine whose visible
units are in the field too, as those of a processor are. Writes results/transverse.csv and prints
its table.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from dwave.samplers import SimulatedAnnealingSampler
from dwave.system import EmbeddingComposite
from dwave.system.testing import MockDWaveSampler
from scipy.linalg import expm

from scqbm.ising import RBM, spins_to_bits
from scqbm.samplers import (
    DimodSampler,
    Draws,
    ExactSampler,
    GibbsSampler,
    Sampler,
    TemperingSampler,
    assess,
)

RESULTS = Path(__file__).parents[1] / "results" / "transverse.csv"
VISIBLE, HIDDEN, N_READS, N_QUERIES = 6, 4, 1000, 2
FIELDS = (0.3, 1.0, 3.0)


class PausedAnneal(Sampler):
    """Exact reads of all spins in the same field, by the density matrix."""

    transverse = True

    def sample(self, rbm, n_draws, state=None, generator=None):
        fields, couplings, _ = (x.double().numpy() for x in rbm.classical().to_ising())
        n = len(fields)
        spins = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)[::-1]) & 1)
        v, h = np.split(spins, [rbm.n_visible], 1)
        H = np.diag(spins @ fields + ((v @ couplings) * h).sum(1))
        for i in range(n):
            flipped = np.arange(2**n) ^ (1 << (n - 1 - i))
            H[np.arange(2**n), flipped] -= float(rbm.gamma[0])
        p = np.diag(expm(-H + np.eye(2**n) * np.diag(H).min()))
        seed = int(torch.randint(2**31, (), generator=generator))
        rows = np.random.default_rng(seed).choice(2**n, n_draws, p=p / p.sum())
        bits = spins_to_bits(torch.tensor(spins[rows])).to(rbm.W)
        return Draws(*bits.tensor_split([rbm.n_visible], 1))


def processor():
    """Ocean's stand-in for a processor, which anneals at the inverse temperature 4."""
    chip = MockDWaveSampler(
        topology_type="zephyr",
        topology_shape=[4],
        parameter_warnings=False,
        substitute_sampler=SimulatedAnnealingSampler(),
        substitute_kwargs={
            "beta_schedule_type": "custom",
            "beta_schedule": [4.0],
            "num_sweeps_per_beta": 400,
        },
    )
    return DimodSampler(EmbeddingComposite(chip), beta=4.0, auto_scale=False)


SAMPLERS = {
    "ExactSampler": ExactSampler,
    "GibbsSampler": GibbsSampler,
    "TemperingSampler": TemperingSampler,
    "DimodSampler, simulated annealing of rings": DimodSampler.simulated_annealing,
    "DimodSampler, path-integral annealing of rings": DimodSampler.path_integral_annealing,
    "DimodSampler, mock processor, rings": processor,
    "ideal processor, all units in the field": PausedAnneal,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    rows = []
    for gamma in FIELDS:
        for name, make in SAMPLERS.items():
            found = []
            for seed in args.seeds:
                g = torch.Generator().manual_seed(seed)
                sizes = VISIBLE, HIDDEN, (VISIBLE, HIDDEN)
                a, b, W = (torch.randn(s, generator=g, dtype=torch.float64) for s in sizes)
                field = torch.full((HIDDEN,), gamma, dtype=torch.float64)
                rbm = RBM(a, b, 2 * W, gamma=field)
                g = torch.Generator().manual_seed(seed)
                found.append(assess(make(), rbm, N_READS, N_QUERIES, generator=g, name=name))
            mean = pd.concat(found).select_dtypes("number").mean()
            row = {"sampler": name, "field": gamma}
            columns = "error_1", "floor_1", "error_2", "floor_2", "seconds_per_query"
            rows.append(row | {column: round(float(mean[column]), 4) for column in columns})
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(RESULTS, index=False)
    table = pd.DataFrame(rows).pivot(index="sampler", columns="field", values="error_1")
    print(table.loc[list(SAMPLERS)].to_string())


if __name__ == "__main__":
    main()
