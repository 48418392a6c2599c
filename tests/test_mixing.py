"""What the loss adds to the ELBO: the price of codes that tell their batch, the bonus."""

import math

import pytest
import scvi
import torch
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.data import simulate
from scqbm.module import _mixing
from scqbm.module._mixing import BANDWIDTHS, batch_discrepancy, mixing_penalty


def by_hand(codes, batch):
    """Pair by pair, as the definition reads; only the last similarities have a gradient."""
    n = len(codes)
    d = torch.stack([torch.stack([(x - y).square().sum() for y in codes]) for x in codes])
    unit = float(d.detach().mean())
    similar = sum(torch.exp(-d / (2 * width * unit)) for width in BANDWIDTHS)
    close = (d.detach() / (-2 * 0.05 * unit)).exp().tolist()
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    across = [(i, j) for i, j in pairs if batch[i] != batch[j]]
    value = 0.1 * of_counterparts(similar, close, pairs, across, n)
    return value + 0.2 * of_whole_batches(similar, batch)


def of_counterparts(similar, close, pairs, across, n):
    """Neighbours less counterparts."""
    if not across or len(across) == len(pairs):
        return 0.0

    def mutual(chosen):
        near = [sum(close[i][j] for i, j in chosen if i == cell) for cell in range(n)]
        return {(i, j): close[i][j] / math.sqrt(near[i] * near[j]) for i, j in chosen}

    counterparts, neighbours = mutual(across), mutual(pairs)
    counts = [min(1, sum(v for (i, _), v in counterparts.items() if i == c)) for c in range(n)]
    for matches in (counterparts, neighbours):
        for i, j in matches:
            matches[i, j] *= math.sqrt(counts[i] * counts[j])

    def mean(matches):
        return sum(v * similar[pair] for pair, v in matches.items()) / sum(matches.values())

    own = 1 - len(across) / len(pairs)
    return sum(counts) / n / own * (mean(neighbours) - mean(counterparts))


def of_whole_batches(k, batch):
    """The unbiased squared MMD between each batch and the rest, averaged by cells."""
    total = 0.0
    for s in batch.unique():
        ours, theirs = torch.where(batch == s)[0].tolist(), torch.where(batch != s)[0].tolist()
        if len(ours) < 2 or len(theirs) < 2:
            continue
        pairs = [k[i, j] for i in ours for j in ours if i != j]
        others = [k[i, j] for i in theirs for j in theirs if i != j]
        mixed = [k[i, j] for i in ours for j in theirs]
        mean = [sum(x) / len(x) for x in (pairs, others, mixed)]
        total += len(ours) / len(batch) * (mean[0] + mean[1] - 2 * mean[2])
    return total


@pytest.mark.parametrize(
    "batch", [[0] * 4 + [1] * 5, [0] * 3 + [1] * 3 + [2] * 2 + [3], [0] * 9, list(range(9))]
)
def test_discrepancy_is_the_pairwise_definition(batch):
    torch.manual_seed(0)
    codes, batch = torch.rand(9, 4, dtype=torch.float64), torch.tensor(batch)
    ours = batch_discrepancy(codes, batch.unsqueeze(1), n_batch=10)
    assert float(ours) == pytest.approx(float(by_hand(codes, batch)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n_batch", [2, 3])
def test_the_gradient_is_that_of_the_definition(n_batch):
    torch.manual_seed(0)
    codes = torch.rand(12, 4, dtype=torch.float64, requires_grad=True)
    batch = torch.arange(12) % n_batch
    values = batch_discrepancy(codes, batch, n_batch), by_hand(codes, batch)
    ours, by_pairs = (torch.autograd.grad(3 * value, codes)[0] for value in values)
    torch.testing.assert_close(ours, by_pairs)


@pytest.mark.parametrize("distance", [3.0, 1e3])
def test_a_cell_far_from_all_others_is_no_trouble(distance):
    """Similarities that single precision cannot hold do not make the penalty infinite or NaN."""
    torch.manual_seed(0)
    codes, batch = torch.rand(128, 4, dtype=torch.float64), torch.arange(128) % 3
    codes[5] += distance
    single = codes.float().requires_grad_()
    value = batch_discrepancy(single, batch, 3)
    assert float(value.detach()) == pytest.approx(float(by_hand(codes, batch)), abs=1e-5)
    (gradient,) = torch.autograd.grad(value, single)
    assert torch.isfinite(gradient).all()


def types(n, n_types=4, seed=0):
    """Codes of ``n`` cells of types that are well apart, and their types."""
    g = torch.Generator().manual_seed(seed)
    of_cell = torch.randint(n_types, (n,), generator=g)
    middle = torch.rand(n_types, 16, generator=torch.Generator().manual_seed(99)).round()
    return middle[of_cell] + 0.15 * torch.randn(n, 16, generator=g), of_cell


@pytest.mark.parametrize("n_batch", [2, 5, 30])
def test_discrepancy_is_near_0_where_batches_are_mixed_and_large_where_not(n_batch):
    same, apart = [], []
    for seed in range(100):
        codes, _ = types(128, seed=seed)
        batch = torch.randint(n_batch, (128,), generator=torch.Generator().manual_seed(500 + seed))
        same.append(float(batch_discrepancy(codes, batch, n_batch)))
        shift = 0.4 * (batch == 0).unsqueeze(1)
        apart.append(float(batch_discrepancy(codes + shift, batch, n_batch)))
    mean, shifted = sum(same) / 100, sum(apart) / 100
    assert abs(mean) < 0.1 * shifted


def test_the_part_of_whole_batches_is_unbiased(monkeypatch):
    monkeypatch.setattr(_mixing, "COUNTERPARTS", 0.0)
    torch.manual_seed(0)
    batch = torch.arange(60) % 3
    same = torch.stack([batch_discrepancy(torch.rand(60, 8), batch, 3) for _ in range(300)])
    assert abs(same.mean()) < 4 * same.std() / 300**0.5
    apart = torch.rand(60, 8) + (batch == 1).unsqueeze(1)
    assert batch_discrepancy(apart, batch, 3) > 10 * same.std()


def test_composition_alone_costs_counterparts_next_to_nothing(monkeypatch):
    """Types in ratios of 1 to 10 and 10 to 1, their cells alike: far less than a shift."""
    monkeypatch.setattr(_mixing, "WHOLE_BATCHES", 0.0)
    codes, of_cell = types(400)
    g = torch.Generator().manual_seed(1)
    share = torch.where(of_cell % 2 == 0, 0.91, 0.09)
    batch = (torch.rand(400, generator=g) < share).long()
    skewed = float(batch_discrepancy(codes, batch, 2))
    shifted = float(batch_discrepancy(codes + 0.4 * batch.unsqueeze(1), batch, 2))
    assert abs(skewed) < 0.05 * shifted


def test_what_has_no_counterpart_is_left_alone():
    """A type that one batch lacks feels less than one whose cells are shifted between batches."""
    torch.manual_seed(0)
    near, far = torch.zeros(40, 6), torch.full((20, 6), 4.0)
    codes = torch.cat([near, near[:20] + 0.6, far]) + 0.1 * torch.randn(80, 6)
    codes.requires_grad_()
    batch = torch.tensor([0] * 40 + [1] * 20 + [1] * 20)
    batch_discrepancy(codes, batch, 2).backward()
    assert codes.grad[40:60].norm() > 5 * codes.grad[60:].norm()


def test_a_step_along_the_gradient_brings_counterparts_together():
    codes, of_cell = types(200)
    batch = torch.arange(200) % 2
    codes = (codes + 0.4 * batch.unsqueeze(1)).requires_grad_()
    batch_discrepancy(codes, batch, 2).backward()
    moved = codes.detach() - 5 * codes.grad

    def gaps(x):
        means = [
            (x[(batch == 0) & (of_cell == t)].mean(0) - x[(batch == 1) & (of_cell == t)].mean(0))
            for t in range(4)
        ]
        return torch.stack(means).norm(dim=1)

    assert (gaps(moved) < gaps(codes.detach())).all()


def test_identical_codes_have_finite_gradients():
    codes = torch.zeros(10, 3, requires_grad=True)
    value = batch_discrepancy(codes, torch.arange(10) % 2, 2)
    value.backward()
    assert value == 0 and codes.grad.isfinite().all()


@pytest.fixture(scope="module")
def adata():
    scvi.settings.seed = 0
    data = synthetic_iid(batch_size=60, n_genes=30)
    data.X[: data.n_obs // 2, :10] += 20  # a batch effect
    return data


def losses(model):
    """Loss at full KL weight, and the negative ELBO that it should contain."""
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=120)))
    torch.manual_seed(1)
    *_, output = model.module(tensors, loss_kwargs={"kl_weight": 0.5})
    kl = output.dict_sum(output.kl_local)
    return output.loss, (output.dict_sum(output.reconstruction_loss) + 0.5 * kl).mean(), tensors


def train(model):
    plan = {"lr": 1e-2, "n_epochs_kl_warmup": 5}
    model.train(40, accelerator="cpu", batch_size=60, enable_progress_bar=False, plan_kwargs=plan)


@pytest.mark.parametrize(
    ("given", "weight", "bonus"),
    [
        ({}, 50.0, 0.5),
        ({"batch_mixing": 7.0, "entropy_bonus": 0.0}, 7.0, 0.0),
        ({"batch_mixing": 0.0, "entropy_bonus": 0.4}, 0.0, 0.4),
    ],
)
def test_loss_is_negative_elbo_plus_the_price_less_the_bonus(adata, given, weight, bonus):
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=8, **given)
    model.module.eval()
    loss, elbo, tensors = losses(model)
    codes = model.module.inference(tensors["X"], tensors["batch"])["qz"].loc
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 8)
    p = codes.double().unsqueeze(1)
    q = (every * p + (1 - every) * (1 - p)).prod(-1)  # of each cell, over all 256 codes
    torch.testing.assert_close(q.sum(-1), torch.ones(len(q), dtype=torch.float64))
    entropy = -(q * q.log()).sum(-1).mean()
    assert entropy > 1
    prior = (-model.module.prior.energy(every.float())).double().log_softmax(0)
    kl = (q * (q.log() - prior)).sum(-1).mean()  # also enumerated
    price = weight * kl.clamp(min=1) / 10 * batch_discrepancy(codes, tensors["batch"], 2)
    assert (price != 0) == (weight != 0)
    assert loss.item() == pytest.approx((elbo + price - bonus * entropy).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("batch", {"batch_mixing": 0.0, "entropy_bonus": 0.0}),
        ("batch", {"latent_distribution": "normal"}),
        (None, {"entropy_bonus": 0.0}),
    ],
)
def test_loss_is_the_negative_elbo_without_it_or_without_batches(adata, key, given):
    QBMVI.setup_anndata(adata, batch_key=key)
    model = QBMVI(adata, n_latent=8, **given)
    model.module.eval()
    loss, elbo, _ = losses(model)
    assert loss.item() == pytest.approx(elbo.item(), rel=1e-6)


def test_batches_mix_in_the_codes():
    """Training with it leaves codes of both batches closer than training without."""
    adata = simulate(n_cells=240, n_genes=60, n_types=3, n_batches=2, seed=0)
    found = {}
    for weight in (0.0, 100.0):
        scvi.settings.seed = 0
        QBMVI.setup_anndata(adata, batch_key="batch")
        model = QBMVI(adata, n_latent=8, n_prior_hidden=0, n_hidden=32, batch_mixing=weight)
        train(model)
        codes = torch.from_numpy(model.get_latent_representation())
        batch = torch.from_numpy(adata.obs["_scvi_batch"].to_numpy(dtype="int64"))
        found[weight] = batch_discrepancy(codes, batch, 2).item()
    assert found[100.0] < 0.3 * found[0.0]


def test_the_penalty_follows_the_information_without_pulling_at_it():
    """In proportion to the mean KL, which gets no gradient; anything below 1 nat counts as 1."""
    codes = torch.rand(40, 6, dtype=torch.float64, requires_grad=True)
    batch = torch.arange(40) % 2
    kl = torch.linspace(0, 12, 40, dtype=torch.float64, requires_grad=True)
    full = batch_discrepancy(codes, batch, 2)
    half = mixing_penalty(codes, batch, 2, kl - 1)
    torch.testing.assert_close(half, full / 2)
    (slope,) = torch.autograd.grad(half, codes, retain_graph=True)
    torch.testing.assert_close(slope, torch.autograd.grad(full, codes)[0] / 2)
    assert torch.autograd.grad(half, kl, allow_unused=True) == (None,)
    torch.testing.assert_close(mixing_penalty(codes, batch, 2, kl - 100), full / 10)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), "much"])
def test_bad_price(adata, wrong):
    QBMVI.setup_anndata(adata, batch_key="batch")
    with pytest.raises(ValueError, match="`batch_mixing` must be 0 or more, not"):
        QBMVI(adata, batch_mixing=wrong)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), "much"])
def test_bad_bonus(adata, wrong):
    QBMVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="`entropy_bonus` must be 0 or more, not"):
        QBMVI(adata, entropy_bonus=wrong)


def test_bonus_is_for_bits(adata):
    QBMVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="`entropy_bonus` is for bits"):
        QBMVI(adata, entropy_bonus=0.1, latent_distribution="normal")


def test_the_bonus_keeps_bits_undecided(adata):
    decided = {}
    for bonus in (0.0, 1.0):
        scvi.settings.seed = 0
        QBMVI.setup_anndata(adata)
        model = QBMVI(adata, n_latent=16, n_hidden=32, entropy_bonus=bonus)
        train(model)
        p = torch.from_numpy(model.get_latent_representation())
        entropy = torch.distributions.Bernoulli(p).entropy().sum(-1).mean().item()
        decided[bonus] = 16 * math.log(2) - entropy
    assert decided[0.0] > 0.4
    assert decided[1.0] < 0.5 * decided[0.0]
