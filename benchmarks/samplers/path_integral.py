"""How many sweeps path-integral annealing needs before its reads are draws of the prior.

python benchmarks/samplers/path_integral.py

Twelve priors of 6 + 6 units with couplings of standard deviation 3, without biases and with biases
of standard deviation 1. Root mean square errors of first and second moments of spins over 2,000
reads, against enumeration, beside those of as many exact draws.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from scqbm.ising import RBM, bits_to_spins
from scqbm.samplers import DimodSampler, ExactSampler, moments

RESULTS = Path(__file__).parents[1] / "results" / "path_integral.csv"
N_PRIORS, N_READS = 12, 2000
SAMPLERS = {
    "path integral, 100 sweeps": lambda: DimodSampler.path_integral_annealing(100),
    "path integral, 400 sweeps": lambda: DimodSampler.path_integral_annealing(400),
    "exact": ExactSampler,
}


def errors(sampler, bias, seed):
    """Root mean square errors of first and second moments on one prior."""
    g = torch.Generator().manual_seed(seed)
    a, b, W = (torch.randn(s, generator=g, dtype=torch.float64) for s in (6, 6, (6, 6)))
    rbm = RBM(bias * a, bias * b, 3 * W)
    draws = sampler.sample(rbm, N_READS, None, torch.Generator().manual_seed(seed))
    truth, v, h = moments(rbm), bits_to_spins(draws.visible), bits_to_spins(draws.hidden)
    first = torch.cat([v.mean(0) - truth.visible, h.mean(0) - truth.hidden])
    second = v.T @ h / N_READS - truth.product
    return first.square().mean().sqrt().item(), second.square().mean().sqrt().item()


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = []
    for bias in (0.0, 1.0):
        for name, make in SAMPLERS.items():
            found = torch.tensor([errors(make(), bias, seed) for seed in range(N_PRIORS)])
            rms, worst = found.square().mean(0).sqrt(), found.max(0).values
            rows.append(
                {
                    "biases": bias,
                    "sampler": name,
                    "first": round(rms[0].item(), 4),
                    "second": round(rms[1].item(), 4),
                    "worst first": round(worst[0].item(), 4),
                    "worst second": round(worst[1].item(), 4),
                }
            )
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
