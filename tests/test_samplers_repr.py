"""How samplers print: one line with their arguments, and no secret."""

import ast
import copy
import sys

import numpy as np
import pytest
import torch
from dwave.samplers import SimulatedAnnealingSampler
from qpu_helpers import MockChip

from scqbm.samplers import (
    CIMSampler,
    DimodSampler,
    ExactSampler,
    GibbsSampler,
    KaiwuSampler,
    QPUSampler,
    Sampler,
    TemperingSampler,
)

SECRET = "correct-horse-battery"
GIBBS = "GibbsSampler(n_sweeps=2, renew_every=100, n_anneal=200)"


class Remote(Sampler):
    """One's own, with a token."""

    def __init__(self, machine, token, **options):
        self.machine = machine
        self.token = token
        self.options = options
        self.counter = 0

    def sample(self, rbm, n_draws, state=None, generator=None):
        """Never asked."""

    def secrets(self):
        return [self.token]


SHOWN = {
    "exact": (ExactSampler, "ExactSampler()"),
    "gibbs": (GibbsSampler, GIBBS),
    "tempering": (
        lambda: TemperingSampler(n_replicas=4),
        "TemperingSampler(n_sweeps=10, n_replicas=4, n_start=500)",
    ),
    "cim": (
        lambda: CIMSampler(bits=None),
        "CIMSampler(n_steps=200, pump=2.0, noise=1.0, control=0.02, bits=None, n_sweeps=10, "
        "adapt=True)",
    ),
    "dimod": (
        lambda: DimodSampler(SimulatedAnnealingSampler(), beta=2.0, num_sweeps=7),
        "DimodSampler(sampler=SimulatedAnnealingSampler(...), beta=2.0, num_sweeps=7)",
    ),
    "annealing": (
        DimodSampler.simulated_annealing,
        "DimodSampler(sampler=SimulatedAnnealingSampler(...), beta=1.0, "
        "beta_schedule_type='custom', beta_schedule=[1.0], num_sweeps_per_beta=100)",
    ),
    "path integral": (
        lambda: DimodSampler.path_integral_annealing(9),
        "DimodSampler(sampler=PathIntegralAnnealingSampler(...), beta=1.0, "
        "beta_schedule_type='custom', Hp_field=[1.0, 1.0, ..., 1.0, 1.0], "
        "Hd_field=[1.0, 0.875, ..., 0.125, 0.0])",
    ),
    "processor": (
        lambda: QPUSampler(MockChip(), max_qpu_time=60, annealing_time=7.0),
        "QPUSampler(child='MockChip', beta=4.0, adapt=True, chain_strength=None, "
        f"chain_breaks='vote', n_gauges=1, max_qpu_time=60, retries=3, backoff=1.0, "
        f"timeout=600.0, fallback={GIBBS}, retry_every=20, annealing_time=7.0)",
    ),
    "kaiwu": (
        lambda: KaiwuSampler("python3.10", project_no="p1"),
        "KaiwuSampler(command=['python3.10', ...], machine='cim', n_sweeps=10, adapt=False, "
        "bits=8, timeout=600.0, project_no='p1')",
    ),
    "own": (
        lambda: Remote("m1", SECRET, shots=np.arange(3), table=torch.eye(2), note=f"{SECRET}!"),
        "Remote(machine='m1', token='[token]', shots=[0, 1, 2], table=[[1.0, 0.0], [0.0, 1.0]], "
        "note='[token]!')",
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_sampler_shows_its_arguments(name):
    make, shown = SHOWN[name]
    sampler = make()
    assert repr(sampler).replace("MockDWaveSampler", "MockChip") == shown
    ast.parse(shown)  # could be typed
    assert repr(copy.deepcopy(sampler)) == repr(sampler)


def test_a_long_list_is_cut():
    sampler = DimodSampler(SimulatedAnnealingSampler(), beta_schedule=list(range(100)))
    assert repr(sampler).endswith("beta_schedule=[0, 1, ..., 98, 99])")


def test_a_command_line_may_hold_secrets():
    sampler = KaiwuSampler([sys.executable, "-c", f"code = {SECRET!r}"])
    assert SECRET not in repr(sampler) and sys.executable in repr(sampler)


def test_secrets_of_the_environment(monkeypatch):
    monkeypatch.setenv("KAIWU_SDK_CODE", SECRET)
    sampler = KaiwuSampler("python", project_no=SECRET)
    assert repr(sampler).endswith("project_no='[token]')")
    chip = MockChip()
    chip.properties["chip_id"] = f"chip of {SECRET}"
    assert repr(QPUSampler(chip)).startswith("QPUSampler(child='chip of [token]', beta")
