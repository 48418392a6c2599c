"""The worker that drives QBoson's SDK, against an SDK of our own that only looks like it."""

import json
import sys

import pytest
import torch
from helpers import draws_of, weak_fields

from scqbm.samplers import KaiwuSampler

SECRET = "abc-very-secret-123"
SDK = """
import json, os, sys, types
import numpy as np

print("Kaiwu SDK, welcome")  # on standard output, as SDKs will
seen = []
license = types.SimpleNamespace(init=lambda user_id, sdk_code: seen.append((user_id, sdk_code)))

class common:
    class CheckpointManager:
        save_dir = None

class Optimizer:
    def __init__(self, **kwargs):
        self.kwargs = kwargs
    def solve(self, matrix):
        print("solving", matrix.dtype)
        if self.kwargs.get("fails"):
            raise ValueError(f"licence {seen} refused")
        assert os.path.isdir(common.CheckpointManager.save_dir)
        with open(os.environ["SEEN"], "w") as file:
            json.dump({"licence": seen, "kwargs": self.kwargs}, file)
        n_reads = self.kwargs.get("sample_number", self.kwargs.get("size_limit"))
        return np.ones((n_reads, len(matrix)))

cim = types.SimpleNamespace(CIMOptimizer=Optimizer)
classical = types.SimpleNamespace(SimulatedAnnealingOptimizer=Optimizer)
"""


@pytest.fixture
def sdk(tmp_path, monkeypatch):
    (tmp_path / "kaiwu.py").write_text(SDK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    monkeypatch.setenv("KAIWU_USER_ID", "me")
    monkeypatch.setenv("KAIWU_SDK_CODE", SECRET)
    return tmp_path / "seen.json"


def test_worker_drives_the_machine(sdk):
    machine = KaiwuSampler(sys.executable, n_sweeps=0, project_no="p1")
    draws = draws_of(machine, weak_fields(2, 3), 4)
    machine.close()
    assert torch.equal(draws.visible, torch.ones(4, 2))
    seen = json.loads(sdk.read_text())
    assert seen["licence"] == [["me", SECRET]]
    assert seen["kwargs"].pop("task_name").startswith("scqbm-")
    assert seen["kwargs"] == {
        "wait": True,
        "task_mode": "quota",
        "sample_number": 4,
        "project_no": "p1",
    }


def test_worker_drives_annealing(sdk):
    machine = KaiwuSampler(sys.executable, machine="sa", cutoff_temperature=1.0)
    draws_of(machine, weak_fields(2, 3), 4)
    machine.close()
    kwargs = json.loads(sdk.read_text())["kwargs"]
    assert set(kwargs) == {"size_limit", "rand_seed", "cutoff_temperature"}
    assert kwargs["size_limit"] == 4


def test_worker_reports_errors_without_the_licence(sdk):
    machine = KaiwuSampler(sys.executable, fails=True)
    with pytest.raises(RuntimeError, match="ValueError: licence .* refused") as caught:
        draws_of(machine, weak_fields(2, 3))
    assert SECRET not in str(caught.value)
    machine.close()


def test_worker_says_so_where_there_is_no_sdk(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    machine = KaiwuSampler(sys.executable)
    with pytest.raises(RuntimeError, match="No module named 'kaiwu'"):
        draws_of(machine, weak_fields(2, 3))
    machine.close()
