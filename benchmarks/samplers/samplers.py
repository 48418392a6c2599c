"""Speed and error of the samplers, side by side in one run.

pip install dwave-pytorch-plugin einops   # for the comparison with its BlockSampler only
OMP_NUM_THREADS=1 python benchmarks/samplers/samplers.py

Rivals run in turn (A B A B ...) and medians count; speed is processor time on one thread, so that
a busy machine shows less. Writes results/samplers_speed.csv and results/samplers.csv anew.
"""

import argparse
import importlib.metadata
import itertools
import platform
import statistics
import time
from pathlib import Path

import pandas as pd
import torch

from scqbm.ising import RBM, bits_to_spins
from scqbm.samplers import (
    CIMSampler,
    DimodSampler,
    ExactSampler,
    GibbsSampler,
    QPUSampler,
    TemperingSampler,
    assess,
    moments,
)

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ["torch", "dwave-samplers", "dwave-pytorch-plugin"]


def machine(n_visible, n_hidden, J, gaussian=False, seed=0):
    """Fields N(0, .05) and couplings N(0, J) of spins; Gaussian couplings as they are."""
    g = torch.Generator().manual_seed(seed)
    a, b = 0.05 * torch.randn(n_visible, generator=g), 0.05 * torch.randn(n_hidden, generator=g)
    W = J * torch.randn(n_visible, n_hidden, generator=g)
    return RBM(a, b, W, True) if gaussian else RBM(-2 * a, -2 * b, -4 * W)


def interleaved(rivals, rounds):
    """Median processor seconds of each, run in turn after one unmeasured round."""
    seconds = {name: [] for name in rivals}
    for k, (name, run) in itertools.product(range(rounds + 1), rivals.items()):
        start = time.process_time()
        run()
        if k:
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def sweep_over_bound(n_units, n_chains, n_sweeps, rounds):
    """A query of the Gibbs sampler over what its products and random numbers cost alone."""
    rbm, g = machine(n_units, n_units, 0.02), torch.Generator().manual_seed(0)
    v, h = torch.rand(n_chains, n_units).round(), torch.empty(n_chains, n_units)
    W_t = rbm.W.T.contiguous()
    noise_v, noise_h = torch.empty_like(v), torch.empty_like(h)
    sampler = GibbsSampler(n_sweeps, renew_every=0, n_anneal=1)
    state = sampler.sample(rbm, n_chains, None, g).state

    def bound():
        for _ in range(n_sweeps):
            torch.mm(v, rbm.W, out=noise_h)
            h.uniform_(generator=g)
            torch.mm(h, W_t, out=noise_v)
            v.uniform_(generator=g)

    rivals = {"query": lambda: sampler.sample(rbm, n_chains, state, g), "bound": bound}
    took = interleaved(rivals, rounds)
    name = f"Gibbs query of {n_sweeps} sweeps over its products and random numbers"
    size = f"{n_units}+{n_units} units, {n_chains} chains"
    print(name, size, took, flush=True)
    return {
        "what": name,
        "size": size,
        "ratio": took["query"] / took["bound"],
        "target": "at most 1.3",
    }


def second_moment_error(rbm, v, h, truth):
    product = bits_to_spins(v.double()).T @ bits_to_spins(h.double()) / len(v)
    return (product - truth.product).square().mean().sqrt().item()


def rivals_at_equal_error(J=0.075, n_sweeps=100, n_chains=256, rounds=3):
    """Gibbs, Ocean's simulated annealing, the plug-in's BlockSampler: 100 sweeps from scratch."""
    rbm = machine(128, 128, J)
    g = torch.Generator().manual_seed(0)
    truth = moments(rbm, GibbsSampler(100), 2048, 10, g)
    gibbs = GibbsSampler(n_sweeps, renew_every=0, n_anneal=1)
    ocean = DimodSampler.simulated_annealing(n_sweeps)
    found = {}

    def ask(name, sampler):
        draws = sampler.sample(rbm, n_chains, None, g)
        found.setdefault(name, []).append(
            second_moment_error(rbm, draws.visible, draws.hidden, truth)
        )

    rivals = {
        "Gibbs": lambda: ask("Gibbs", gibbs),
        "Ocean's simulated annealing": lambda: ask("Ocean's simulated annealing", ocean),
    }
    try:
        rivals["dwave-pytorch-plugin's BlockSampler"] = block_sampler(
            rbm, n_sweeps, n_chains, truth, found
        )
    except ImportError:
        print("dwave-pytorch-plugin is not installed: no comparison with its BlockSampler")
    took = interleaved(rivals, rounds)
    error = {name: statistics.mean(values) for name, values in found.items()}
    print(took, error, flush=True)
    targets = {
        "Ocean's simulated annealing": "at least 3",
        "dwave-pytorch-plugin's BlockSampler": "at least 30",
    }
    return [
        {
            "what": f"{name} over Gibbs, time of {n_sweeps} sweeps",
            "size": f"128+128 units, {n_chains} chains, J {J}",
            "ratio": took[name] / took["Gibbs"],
            "target": targets[name],
            "error": error[name],
            "error_gibbs": error["Gibbs"],
        }
        for name in rivals
        if name != "Gibbs"
    ]


def block_sampler(rbm, n_sweeps, n_chains, truth, found):
    from dwave.plugins.torch.models import GraphRestrictedBoltzmannMachine
    from dwave.plugins.torch.samplers import BlockSampler

    fields, J, _ = rbm.to_ising()
    n = rbm.n_visible
    edges = [(i, n + j) for i in range(n) for j in range(rbm.n_hidden)]
    grbm = GraphRestrictedBoltzmannMachine(
        range(len(fields)),
        edges,
        linear=dict(enumerate(fields.tolist())),
        quadratic=dict(zip(edges, J.flatten().tolist(), strict=True)),
    )
    seeds = itertools.count()

    def colour(unit):
        return int(unit >= n)

    # chains begin at random and no set-up is timed, as for the others
    samplers = [
        BlockSampler(grbm, colour, n_chains, [1.0] * n_sweeps, seed=next(seeds)) for _ in range(8)
    ]

    def run():
        bits = (samplers.pop().sample() + 1) / 2
        found.setdefault("dwave-pytorch-plugin's BlockSampler", []).append(
            second_moment_error(rbm, bits[:, :n], bits[:, n:], truth)
        )

    return run


def assessments():
    """Every sampler on four machines."""
    systems = {
        "small glass, 14+14, J 1": machine(14, 14, 1.0),
        "Gaussian, 10+16, W 1": machine(10, 16, 1.0, gaussian=True),
        "weak, 128+128, J .075": machine(128, 128, 0.075),
        "glass, 128+128, J .3": machine(128, 128, 0.3),
    }
    for system, rbm in systems.items():
        large, glassy = rbm.n_visible > 100, "glass" in system
        g = torch.Generator().manual_seed(1)
        if not large:
            truth = moments(rbm)
        elif glassy:
            truth = moments(rbm, TemperingSampler(50, 24, 3000), 128, 16, g)
        else:
            truth = moments(rbm, GibbsSampler(100), 2048, 10, g)
        for name, sampler in candidates(large, glassy).items():
            try:
                row = assess(sampler, rbm, 256, 4 if large else 10, truth, g, name)
            except Exception as error:  # a benchmark of many should say so and go on
                print(f"{system}: {name} failed: {error}")
                continue
            row.insert(0, "system", system)
            print(row.drop(columns=SIZES).to_string(index=False, header=False), flush=True)
            yield row


SIZES = ["n_visible", "n_hidden", "gaussian", "n_draws", "n_queries"]


def candidates(large, glassy):
    """Samplers by name, as far as they make sense at this size."""
    found = {
        "Gibbs, 5 sweeps": GibbsSampler(5),
        "Gibbs, 100 sweeps, never annealed": GibbsSampler(100, renew_every=0, n_anneal=1),
        "Tempering": TemperingSampler(n_start=2000 if glassy and large else 500),
        "Simulated annealing": DimodSampler.simulated_annealing(),
    }
    if not large:
        found = {"Exact": ExactSampler(), **found}
    found["CIM, simulated"] = CIMSampler()
    found["CIM, as read out"] = CIMSampler(n_sweeps=0)
    if not large:  # minutes each at 128+128
        found["Path integral annealing"] = DimodSampler.path_integral_annealing(100)
        found["QPU mock, Zephyr"] = QPUSampler(mock_chip())
    return found


def mock_chip(beta=4.0, size=6):
    """Ocean's stand-in for a processor, which anneals at the inverse temperature ``beta``."""
    from dwave.samplers import SimulatedAnnealingSampler
    from dwave.system.testing import MockDWaveSampler

    return MockDWaveSampler(
        topology_type="zephyr",
        topology_shape=[size],
        substitute_sampler=SimulatedAnnealingSampler(),
        substitute_kwargs={
            "beta_schedule_type": "custom",
            "beta_schedule": [beta],
            "num_sweeps_per_beta": 200,
        },
    )


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    versions = {package: version(package) for package in PACKAGES}
    versions["python"] = platform.python_version()
    speed = [
        sweep_over_bound(128, 256, 100, 15),
        sweep_over_bound(128, 256, 5, 60),
        sweep_over_bound(1024, 4096, 5, 2),
        *rivals_at_equal_error(),
    ]
    speed = pd.DataFrame([{**row, **versions} for row in speed])
    print(speed.drop(columns=list(versions)).to_string(index=False), flush=True)
    RESULTS.mkdir(exist_ok=True)
    speed.to_csv(RESULTS / "samplers_speed.csv", index=False, float_format="%.4g")
    table = pd.concat(assessments()).assign(**versions)
    table.to_csv(RESULTS / "samplers.csv", index=False, float_format="%.4g")
    print(table.drop(columns=[*SIZES, *versions]).to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
