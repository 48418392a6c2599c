"""The process that has QBoson's SDK: protocol and signs, and every way in which it can fail."""

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import scvi
import torch
from helpers import draws_of, weak_fields
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.samplers import KaiwuSampler

HERE = Path(__file__).parent
SECRET = "abc-very-secret-123"


@pytest.fixture
def sampler():
    """Makes samplers that ask the stand-in, and ends their processes."""
    made = []

    def make(*arguments, **kwargs):
        command = [sys.executable, HERE / "kaiwu_stand_in.py", *map(str, arguments)]
        made.append(KaiwuSampler(command, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def worst_z(draws, rbm):
    """Largest error of a mean or product of spins, in units of independent draws' error."""
    a, b, W = (x.double().numpy() for x in (rbm.a, rbm.b, rbm.W))
    n = len(b) if rbm.gaussian else len(a) + len(b)
    states = np.array(list(np.ndindex(*[2] * n)), dtype=float)
    v, h = states[:, : n - len(b)], states[:, n - len(b) :]
    if rbm.gaussian:
        minus_energy = h @ b + np.square(a + (h - 0.5) @ W.T).sum(1) / 2
        drawn = draws.hidden
    else:
        minus_energy = v @ a + h @ b + (((v - 0.5) @ W) * (h - 0.5)).sum(1)
        drawn = torch.cat([draws.visible, draws.hidden], 1)
    p = np.exp(minus_energy - minus_energy.max())
    p /= p.sum()

    def features(bits):
        s = np.concatenate([2 * bits - 1, np.ones((len(bits), 1))], 1)
        return np.stack(
            [s[:, i] * s[:, j] for i, j in zip(*np.triu_indices(n + 1, 1), strict=True)], 1
        )

    mean = p @ features(states)
    error = np.sqrt(np.maximum(1 - mean**2, 1e-4) / len(drawn))
    return np.abs((features(drawn.double().numpy()).mean(0) - mean) / error).max()


def lives(process):
    return process._process.poll() is None


# -- what it answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("gaussian", [False, True])
def test_a_machine_at_temperature_one_needs_no_correction(sampler, gaussian):
    rbm = weak_fields(3, 5, gaussian)
    draws = draws_of(sampler(bits=None, n_sweeps=0), rbm, 4000)
    assert worst_z(draws, rbm) < 5
    assert draws.info["beta"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_lowest_energy_is_found(sampler, gaussian):
    rbm = weak_fields(4, 4, gaussian, scale=1.5)
    draws = draws_of(sampler("well", 1e-3, n_sweeps=0), rbm, 5)  # 127 levels: frozen
    bits = torch.tensor(list(np.ndindex(*[2] * 4)), dtype=torch.float32)
    if gaussian:
        ground = bits[rbm.hidden_free_energy(bits).argmin()]
        assert torch.equal(draws.hidden, ground.expand(5, -1))
    else:
        energies = torch.stack([rbm.energy(v.expand(16, -1), bits) for v in bits])
        v, h = divmod(energies.argmin().item(), 16)
        assert torch.equal(draws.visible, bits[v].expand(5, -1))
        assert torch.equal(draws.hidden, bits[h].expand(5, -1))


def test_adaptation_finds_the_machines_temperature(sampler):
    rbm, state = weak_fields(4, 4), None
    machine = sampler("well", 40.0, adapt=True, n_sweeps=0)  # in units of one level
    betas = []
    for seed in range(6):
        draws = draws_of(machine, rbm, 2000, seed, state)
        state = draws.state
        betas.append(draws.info["beta"])
    assert betas[0] > 1.3  # full range is too cold
    assert betas[-1] == pytest.approx(1, abs=0.1)
    assert worst_z(draws_of(machine, rbm, 2000, 6, state), rbm) < 8  # few levels: rounding


def test_sweeps_mend_what_the_machine_gets_wrong(sampler):
    rbm = weak_fields(3, 3)
    assert worst_z(draws_of(sampler("well", 20.0, n_sweeps=0), rbm, 2000), rbm) > 10
    assert worst_z(draws_of(sampler("well", 20.0, n_sweeps=20), rbm, 2000), rbm) < 5


def test_the_request_is_the_documented_one(sampler, tmp_path):
    memory = tmp_path / "request.json"
    rbm = weak_fields(2, 2)
    sampler_ = sampler("well", 1.0, memory, machine="sa", alpha=0.9)
    draws_of(sampler_, rbm, 7)
    request = json.loads(memory.read_text())
    assert set(request) == {"id", "n_reads", "matrix", "seed", "machine", "options"}
    assert request["n_reads"] == 7 and request["machine"] == "sa"
    assert request["options"] == {"alpha": 0.9}
    matrix = np.array(request["matrix"])
    assert matrix.dtype.kind == "i" and np.array_equal(matrix, matrix.T)
    assert matrix.shape == (5, 5) and np.abs(matrix).max() == 127 and not matrix.diagonal().any()
    # by hand: bits are (1 + s) / 2, H = -s' M s counts each pair twice, biases go to the last spin
    halves = np.zeros((5, 5))
    halves[:2, 2:4] = rbm.W.numpy() / 8
    halves[:4, 4] = torch.cat([rbm.a, rbm.b]).numpy() / 4
    halves += halves.T
    assert np.abs(matrix - np.round(halves * 127 / np.abs(halves).max())).max() <= 1


def test_too_few_read_outs_are_used_in_turn(sampler):
    with pytest.warns(UserWarning, match="answered 3 read-outs where 7"):
        draws = draws_of(sampler("few", n_sweeps=0), weak_fields(2, 2), 7)
    assert torch.equal(draws.visible[:3], draws.visible[3:6])


def test_same_seed_same_draws(sampler):
    machine, rbm = sampler(), weak_fields(3, 3)
    first, again, other = (draws_of(machine, rbm, 50, seed) for seed in (0, 0, 1))
    assert torch.equal(first.visible, again.visible) and torch.equal(first.hidden, again.hidden)
    assert not torch.equal(first.visible, other.visible)
    assert all(isinstance(x, torch.Tensor | int) for x in first.state.values())


def test_a_model_trains_with_it(sampler):
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=30, n_genes=20, n_proteins=0, n_regions=0)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=6, n_prior_hidden=0, n_hidden=16)
    model.train(
        2,
        accelerator="cpu",
        batch_size=32,
        sampler=sampler("chats"),
        plan_kwargs={"n_negatives": 32},
        enable_progress_bar=False,
    )
    assert np.isfinite(model.history["elbo_train"].to_numpy().astype(float)).all()


# -- how it fails -------------------------------------------------------------------------------


def test_other_lines_are_ignored(sampler):
    assert draws_of(sampler("chats"), weak_fields(2, 2)).visible.shape == (20, 2)


@pytest.mark.parametrize("command", ["/no/such/python", [str(HERE)], [str(HERE / "upstream.py")]])
def test_a_program_that_cannot_start(command):
    with pytest.raises(RuntimeError, match="could not be started .*: check `command`"):
        draws_of(KaiwuSampler(command), weak_fields(2, 2))


@pytest.mark.parametrize(("behaviour", "status"), [("ends at once", 3), ("dies", 4)])
def test_a_process_that_keeps_dying(sampler, behaviour, status):
    machine = sampler(behaviour)
    with pytest.raises(RuntimeError, match=f"ended with exit status {status} .* twice in a row"):
        draws_of(machine, weak_fields(2, 2))
    assert machine._process is None


def test_a_process_that_dies_once_is_started_again(sampler, tmp_path):
    rbm = weak_fields(2, 2)
    died = draws_of(sampler("dies once", 1.0, tmp_path / "memory"), rbm)
    assert torch.equal(died.visible, draws_of(sampler(), rbm).visible)  # nothing lost, same seed


def test_a_process_killed_between_queries(sampler):
    machine, rbm = sampler(), weak_fields(2, 2)
    draws_of(machine, rbm)
    machine._process._process.kill()
    assert draws_of(machine, rbm).visible.shape == (20, 2)


@pytest.mark.parametrize("behaviour", ["hangs", "only chats"])
def test_time_out(sampler, behaviour):
    machine = sampler(behaviour, timeout=2)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 2 s"):
        draws_of(machine, weak_fields(2, 2))
    assert time.monotonic() - began < 8
    assert machine._process is None


def test_time_out_while_it_does_not_listen(sampler):
    machine = sampler("hangs", timeout=2)
    with pytest.raises(TimeoutError):  # the second request no longer fits the pipe
        draws_of(machine, weak_fields(150, 150))


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("ragged", "without a table of spins"),
        ("silent", "without a table of spins"),
        ("empty", "instead of"),
        ("narrow", r"shape \(20, 4\) instead of \(n_reads, 5\)"),
        ("bits", "other than -1 and 1"),
    ],
)
def test_answers_that_are_not_spins(sampler, behaviour, message):
    machine = sampler(behaviour)
    with pytest.raises(RuntimeError, match=message):
        draws_of(machine, weak_fields(2, 2))
    assert lives(machine._process)


def test_reported_errors_are_told_without_the_licence(sampler, monkeypatch):
    monkeypatch.setenv("KAIWU_SDK_CODE", SECRET)
    machine = sampler("reports")
    with pytest.raises(RuntimeError, match=r"reports: no quota left for \*\*\*"):
        draws_of(machine, weak_fields(2, 2))
    assert SECRET not in repr(machine) and SECRET not in str(vars(machine))
    assert SECRET.encode() not in pickle.dumps(machine)


@pytest.mark.parametrize("name", ["user_id", "sdk_code", "access_key"])
def test_secrets_are_refused_as_options(name):
    with pytest.raises(ValueError, match=f"`{name}` must not be an option") as caught:
        KaiwuSampler("python", **{name: SECRET})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"machine": "dwave"}, "machine"),
        ({"timeout": 0}, "timeout"),
        ({"bits": 1}, "bits"),
        ({"command": []}, "command"),
    ],
)
def test_bad_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        KaiwuSampler(**{"command": "python", **kwargs})


# -- the process's life -------------------------------------------------------------------------


def test_one_process_serves_many_queries_and_ends_with_the_sampler(sampler):
    command = sampler().command
    machine, rbm = KaiwuSampler(command), weak_fields(2, 2)
    draws_of(machine, rbm)
    process = machine._process._process
    draws_of(machine, rbm, seed=1)
    assert machine._process._process is process and process.poll() is None
    del machine
    gc.collect()
    assert process.poll() is not None


def test_copies_have_a_process_of_their_own(sampler):
    machine, rbm = sampler(), weak_fields(2, 2)
    draws = draws_of(machine, rbm)
    for other in (copy.deepcopy(machine), pickle.loads(pickle.dumps(machine))):
        assert other._process is None
        assert torch.equal(draws_of(other, rbm).visible, draws.visible)
        assert other._process is not machine._process
        other.close()
    assert lives(machine._process)


@pytest.mark.slow
def test_it_ends_with_the_interpreter(sampler, tmp_path):
    script = textwrap.dedent(f"""
        import torch
        from scqbm.ising import RBM
        from scqbm.samplers import KaiwuSampler
        machine = KaiwuSampler({sampler().command!r})
        machine.sample(RBM(torch.zeros(2), torch.zeros(2), torch.ones(2, 2)), 3)
        print(machine._process._process.pid)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
