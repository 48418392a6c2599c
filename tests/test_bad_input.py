"""Wrong input: an error that names the argument, and nothing learnt is lost."""

from types import SimpleNamespace

import anndata
import numpy as np
import pytest
import scvi
import torch
from helpers import assert_one_sentence
from scipy.sparse import csr_matrix
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.samplers import ExactSampler, GibbsSampler, Sampler, SamplerError

QUIET = {"accelerator": "cpu", "batch_size": 32, "enable_progress_bar": False}


def data():
    scvi.settings.seed = 0
    return synthetic_iid(batch_size=40, n_genes=20)


def make(**kwargs):
    scvi.settings.seed = 0
    adata = data()
    QBMVI.setup_anndata(adata, batch_key="batch")
    return QBMVI(adata, **{"n_latent": 6, "n_hidden": 16, **kwargs})


# -- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("form", [np.asarray, csr_matrix])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_counts_that_are_no_numbers(form, layer, bad):
    adata = data()
    counts = adata.X.astype(np.float32)
    counts[3, 4] = bad
    counts = form(counts)
    if layer is None:
        adata.X = counts
    else:
        adata.layers[layer] = counts
    with pytest.raises(ValueError, match="^`adata` holds NaN or infinite counts") as caught:
        QBMVI.setup_anndata(adata, layer=layer)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("form", [np.asarray, csr_matrix])
@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
def test_negative_counts(gene_likelihood, form):
    adata = data()
    counts = adata.X.astype(np.float32)
    counts[3, 4] = -1
    adata.X = form(counts)
    QBMVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="`adata` holds negative counts"):
        QBMVI(adata, gene_likelihood=gene_likelihood)
    QBMVI(adata, gene_likelihood="normal")


@pytest.mark.parametrize("form", [np.asarray, csr_matrix])
@pytest.mark.parametrize(("bad", "what"), [(-1, "negative"), (np.nan, "NaN or infinite")])
def test_counts_in_a_file(tmp_path, form, bad, what):
    """They used to come out as "diverged, lower lr"."""
    adata = data()
    counts = adata.X.astype(np.float32)
    counts[70, 4] = bad
    adata.X = form(counts)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ValueError, match=f"^`adata` holds {what} counts") as caught:
        QBMVI.setup_anndata(backed)
        QBMVI(backed)
    assert_one_sentence(caught.value)


def test_counts_that_are_not_integers():
    adata = data()
    adata.X = adata.X + 0.5
    with pytest.warns(UserWarning, match="unnormalized count data"):
        QBMVI.setup_anndata(adata)


def test_missing_key():
    with pytest.raises(KeyError, match="nowhere"):
        QBMVI.setup_anndata(data(), batch_key="nowhere")


def test_data_of_another_model():
    adata = data()
    scvi.model.SCVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="setup_anndata"):
        QBMVI(adata)


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_latent": 0}, "`n_latent` must be at least 1, not 0"),
        ({"n_latent": 1, "n_prior_hidden": 0}, "`n_latent` must be at least 2, not 1 .* halves"),
        ({"n_latent": -3, "n_prior_hidden": 4}, "`n_latent` must be at least 1, not -3"),
        ({"n_latent": 0, "latent_distribution": "normal"}, "`n_latent` must be at least 1"),
        ({"n_prior_hidden": -1}, "`n_prior_hidden` must be 0 or more, not -1"),
        (
            {"latent_distribution": "normal", "n_prior_hidden": 0},
            "`n_prior_hidden` must be at least 1",
        ),
        ({"latent_distribution": "ln"}, "`latent_distribution` must be .* logistic normal"),
        ({"latent_distribution": "poisson"}, "`latent_distribution` must be .*'poisson'"),
        ({"relaxation": "reinmaxx"}, "`relaxation` must be one of .*'reinmaxx'"),
        ({"relaxation": "gumbel", "temperature": 0.0}, "`temperature` must be positive, not 0"),
        ({"gene_likelihood": "negbin"}, "`gene_likelihood` must be one of .*, not 'negbin'"),
        ({"batch_mixing": -1}, "`batch_mixing` must be 0 or more, not -1"),
        ({"entropy_bonus": np.nan}, "`entropy_bonus` must be 0 or more, not nan"),
        ({"decoder_dropout": 1}, "`decoder_dropout` must be 0 or more and below 1, not 1"),
    ],
    ids=str,
)
def test_constructor(kwargs, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        make(**kwargs)
    assert_one_sentence(caught.value)


def test_one_bit_is_enough_beside_hidden_ones():
    model = make(n_latent=1, n_prior_hidden=2)
    model.train(1, **QUIET)
    assert model.get_latent_representation().shape == (80, 1)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"sample_every": 0}, ValueError, "`sample_every` must be at least 1, not 0"),
        ({"plan_kwargs": {"n_negatives": 0}}, ValueError, "`n_negatives` must be at least 1"),
        ({"sampler": "gibbs"}, TypeError, "`sampler` must .* str"),
        ({"sampler": 3}, TypeError, "`sampler` must .* int"),
        ({"sampler": GibbsSampler}, TypeError, "`sampler` must be an instance.*GibbsSampler"),
        ({"plan_kwargs": {"prior_lr": -1e-3}}, ValueError, "`prior_lr` must be 0 or more, not -0"),
        ({"plan_kwargs": {"prior_lr": np.nan}}, ValueError, "`prior_lr` must be 0 or more"),
        ({"lr": 1e-3}, TypeError, r"`lr` is an argument of the training plan: .*{'lr': 0\.001}"),
        ({"n_negatives": 9}, TypeError, "`n_negatives` is an argument of the training plan"),
    ],
    ids=str,
)
def test_train(kwargs, error, message):
    with pytest.raises(error, match=f"^{message}") as caught:
        make().train(1, **kwargs, **QUIET)
    assert_one_sentence(caught.value)


def test_representation():
    model = make()
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match="^`representation` must be .*'modes'") as caught:
        model.get_latent_representation(representation="modes")
    assert_one_sentence(caught.value)
    model = make(latent_distribution="normal")
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match="^`representation='logits'` needs bits"):
        model.get_latent_representation(representation="logits")


# -- samplers that misbehave at the 8th query ----------------------------------------------------


def shape_of_code(draws):
    draws.visible = torch.cat([draws.visible, draws.hidden], 1)


def one_row(draws):
    draws.visible = draws.visible[0]


def none_at_all(draws):
    draws.visible = draws.visible[:0]


def spins(draws):
    draws.visible = 2 * draws.visible - 1


def nan(draws):
    draws.visible[2, 1] = torch.nan


def numpy_array(draws):
    draws.visible = draws.visible.numpy()


def few_weights(draws):
    draws.weights = torch.ones(3)


def bad_weights(draws):
    draws.weights = torch.full((len(draws.visible),), torch.nan)


def zero_weights(draws):
    draws.weights = torch.zeros(len(draws.visible))


def negative_weights(draws):
    draws.weights = torch.linspace(-1, 2, len(draws.visible))


def hidden_none(draws):
    draws.hidden = None


def hidden_nan(draws):
    draws.hidden[0, 0] = torch.nan


def hidden_spins(draws):
    draws.hidden = 2 * draws.hidden - 1


def hidden_few(draws):
    draws.hidden = draws.hidden[:9]


def numpy_weights(draws):
    draws.weights = np.ones(len(draws.visible))


def no_info(draws):
    draws.info = None


def refuse(draws):
    raise RuntimeError("the lab is closed")


def tensor(draws):
    return draws.visible


def lookalike(draws):
    return SimpleNamespace(visible=draws.visible)


NOTHING = object()


def none(draws):
    return NOTHING


def nothing(draws):
    return "nothing"


class Failing(Sampler):
    def __init__(self, spoil, after):
        self.spoil, self.left = spoil, after

    def sample(self, rbm, n_draws, state=None, generator=None):
        draws = ExactSampler().sample(rbm, n_draws, state, generator)
        self.left -= 1
        answer = None if self.left >= 0 else self.spoil(draws)
        if answer is NOTHING:
            return None
        return draws if answer is None else answer


BITS = {"n_prior_hidden": 0}
NORMAL = {"latent_distribution": "normal", "n_prior_hidden": 3}


@pytest.mark.parametrize(
    ("spoil", "family", "message"),
    [
        (shape_of_code, BITS, r"returned visible draws of shape \(256, 6\) instead of .*, 3\)"),
        (shape_of_code, NORMAL, r"returned visible draws of shape \(256, 9\) instead of .*, 6\)"),
        (one_row, BITS, r"returned visible draws of shape \(3,\)"),
        (none_at_all, BITS, r"returned visible draws of shape \(0, 3\)"),
        (spins, BITS, "returned values other than 0 and 1 .*spins_to_bits"),
        (nan, BITS, "returned NaN or infinite values"),
        (nan, NORMAL, "returned NaN or infinite values"),
        (numpy_array, BITS, "returned visible draws of type ndarray"),
        (few_weights, BITS, r"returned weights of shape \(3,\) for 256 draws"),
        (bad_weights, BITS, "returned weights that are negative, not finite or all zero"),
        (zero_weights, BITS, "returned weights that are negative, not finite or all zero"),
        (negative_weights, BITS, "returned weights that are negative, not finite or all zero"),
        (hidden_none, BITS, "returned hidden draws of type NoneType instead of torch.Tensor"),
        (hidden_nan, BITS, "returned NaN or infinite values"),
        (hidden_nan, NORMAL, "returned NaN or infinite values"),
        (hidden_spins, NORMAL, "returned values other than 0 and 1"),
        (hidden_few, BITS, "returned 9 hidden draws beside 256 visible ones"),
        (numpy_weights, BITS, "returned weights of type ndarray instead of torch.Tensor"),
        (no_info, BITS, "returned info of type NoneType instead of dict"),
        (refuse, BITS, "failed at step 7: the lab is closed"),
        (tensor, BITS, "returned Tensor instead of scqbm.samplers.Draws"),
        (lookalike, BITS, "returned SimpleNamespace instead of"),
        (nothing, BITS, "returned str instead of"),
        (none, BITS, "returned NoneType instead of"),
    ],
)
def test_a_failing_sampler_leaves_the_training_so_far(tmp_path, spoil, family, message):
    model = make(**family)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    with pytest.raises(SamplerError, match=f"^`sampler` Failing {message}") as caught:
        model.train(10, sampler=Failing(spoil, 7), **QUIET)
    assert "at step 7" in str(caught.value)
    assert str(caught.value).endswith(". The model keeps its training up to that step.")
    after = model.module.state_dict()
    for key in ("z_encoder.mean_encoder.weight", "prior.coupling", "prior.log_z"):
        assert not torch.equal(before[key], after[key]), key
    assert all(value.isfinite().all() for value in after.values())
    latent = model.get_latent_representation()
    model.save(tmp_path / "model", save_anndata=True)
    loaded = QBMVI.load(tmp_path / "model", accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(), latent)
    at_failure = after["prior.coupling"].clone()
    model.train(1, **QUIET)
    assert not torch.equal(model.module.prior.coupling, at_failure)
    assert np.isfinite(model.get_elbo())


def test_the_cause_is_kept():
    with pytest.raises(SamplerError) as caught:
        make().train(1, sampler=Failing(refuse, 0), **QUIET)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_too_large_for_enumeration():
    with pytest.raises(SamplerError, match="at most 20 bits.*has 21: use GibbsSampler"):
        make(n_latent=42, n_prior_hidden=0).train(1, sampler=ExactSampler(), **QUIET)


@pytest.mark.parametrize("part", ["decoder", "prior"])
def test_divergence_is_said(part):
    """Bits would train on NaN in silence; Gaussian codes make torch or the sampler raise."""
    model = make()
    parameter = model.module.px_r if part == "decoder" else model.module.prior.coupling
    torch.nn.init.constant_(parameter, np.nan)
    with pytest.raises(FloatingPointError, match="diverged.*lower lr"):
        model.train(1, **QUIET)


# -- slips of a new user ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_hiden": 3}, "QBMVI has no argument `n_hiden`: did you mean `n_hidden`?"),
        ({"nonsense": 3}, "QBMVI has no argument `nonsense`."),
        ({"n_layers": 0}, "`n_layers` must be an integer of at least 1, not 0."),
        ({"gene_likelihood": "znb"}, "`gene_likelihood` must be one of"),
    ],
)
def test_arguments_of_the_model(wrong, sentence):
    with pytest.raises((TypeError, ValueError)) as caught:
        make(**wrong)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_epoch": 3}, "train has no argument `max_epoch`: did you mean `max_epochs`?"),
        ({"max_epochs": -1}, "`max_epochs` must be an integer of at least 1, not -1."),
        ({"max_epochs": 2.5}, "`max_epochs` must be an integer of at least 1, not 2.5."),
    ],
)
def test_arguments_of_train(wrong, sentence):
    with pytest.raises((TypeError, ValueError)) as caught:
        make().train(**wrong)
    assert str(caught.value) == sentence


def test_few_cells_are_named_but_not_of_a_query(recwarn):
    model = make()
    model.train(1, **QUIET)
    (few,) = [w.message for w in recwarn if "There are only 80 cells" in str(w.message)]
    assert_one_sentence(few)
    recwarn.clear()
    QBMVI.load_query_data(data(), model).train(1, **QUIET)
    assert not [w for w in recwarn if "There are only" in str(w.message)]
