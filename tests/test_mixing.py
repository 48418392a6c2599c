"""What the loss adds to the ELBO: the price of codes that tell their batch, the bonus."""

import math

import pytest
import scvi
import torch
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.module._mixing import BANDWIDTHS, batch_discrepancy


def by_hand(codes, batch):
    """Pair by pair, as the definition of the unbiased estimate reads; the unit has no gradient."""
    n = len(codes)
    d = torch.stack([torch.stack([(x - y).square().sum() for y in codes]) for x in codes])
    k = sum(torch.exp(-d / (2 * width * d.detach().mean())) for width in BANDWIDTHS)
    total = 0.0
    for s in batch.unique():
        ours, theirs = torch.where(batch == s)[0].tolist(), torch.where(batch != s)[0].tolist()
        if len(ours) < 2 or len(theirs) < 2:
            continue
        pairs = [k[i, j] for i in ours for j in ours if i != j]
        others = [k[i, j] for i in theirs for j in theirs if i != j]
        mixed = [k[i, j] for i in ours for j in theirs]
        mean = [sum(x) / len(x) for x in (pairs, others, mixed)]
        total += len(ours) / n * (mean[0] + mean[1] - 2 * mean[2])
    return total


@pytest.mark.parametrize("batch", [[0] * 4 + [1] * 5, [0] * 3 + [1] * 3 + [2] * 2 + [3], [0] * 9])
def test_discrepancy_is_the_pairwise_definition(batch):
    torch.manual_seed(0)
    codes, batch = torch.rand(9, 4, dtype=torch.float64), torch.tensor(batch)
    ours = batch_discrepancy(codes, batch.unsqueeze(1), n_batch=6)
    assert float(ours) == pytest.approx(float(by_hand(codes, batch)), rel=1e-9, abs=1e-12)


def test_discrepancy_is_unbiased_where_batches_agree_and_large_where_not():
    torch.manual_seed(0)
    batch = torch.arange(60) % 3
    same = torch.stack([batch_discrepancy(torch.rand(60, 8), batch, 3) for _ in range(300)])
    assert abs(same.mean()) < 4 * same.std() / 300**0.5
    apart = torch.rand(60, 8) + (batch == 1).unsqueeze(1)
    assert batch_discrepancy(apart, batch, 3) > 10 * same.std()


def test_discrepancy_leaves_alone_what_has_no_counterpart_nearby():
    """A cluster of one batch that is nobody's neighbour feels less than a shifted neighbour."""
    torch.manual_seed(0)
    near, far = torch.zeros(40, 6), torch.full((20, 6), 4.0)
    codes = torch.cat([near, near[:20] + 0.6, far]) + 0.1 * torch.randn(80, 6)
    codes.requires_grad_()
    batch = torch.tensor([0] * 40 + [1] * 20 + [1] * 20)
    batch_discrepancy(codes, batch, 2).backward()
    assert codes.grad[40:60].norm() > 5 * codes.grad[60:].norm()


@pytest.mark.parametrize("n_batch", [2, 3])
def test_the_gradient_is_that_of_the_definition(n_batch):
    torch.manual_seed(0)
    codes = torch.rand(12, 4, dtype=torch.float64, requires_grad=True)
    batch = torch.arange(12) % n_batch
    values = batch_discrepancy(codes, batch, n_batch), by_hand(codes, batch)
    ours, by_pairs = (torch.autograd.grad(3 * value, codes)[0] for value in values)
    torch.testing.assert_close(ours, by_pairs)


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
    price = weight * batch_discrepancy(codes, tensors["batch"], 2)
    assert (price != 0) == (weight != 0)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 8)
    p = codes.double().unsqueeze(1)
    q = (every * p + (1 - every) * (1 - p)).prod(-1)  # of each cell, over all 256 codes
    torch.testing.assert_close(q.sum(-1), torch.ones(len(q), dtype=torch.float64))
    entropy = -(q * q.log()).sum(-1).mean()
    assert entropy > 1
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


def test_batches_mix_in_the_codes(adata):
    """Training with it leaves codes of both batches closer than training without."""
    found = {}
    for weight in (0.0, 100.0):
        scvi.settings.seed = 0
        QBMVI.setup_anndata(adata, batch_key="batch")
        model = QBMVI(adata, n_latent=8, n_hidden=32, batch_mixing=weight)
        train(model)
        codes = torch.from_numpy(model.get_latent_representation())
        batch = torch.from_numpy(adata.obs["_scvi_batch"].to_numpy(dtype="int64"))
        found[weight] = batch_discrepancy(codes, batch, 2).item()
    assert found[100.0] < 0.3 * found[0.0]


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
