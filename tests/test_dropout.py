"""What the encoder and the decoder do not see in training."""

import numpy as np
import pytest
import torch
from small_models import (
    BITS,
    NORMAL,
    QUIET,
    bits_or_normal,
    data,
    trained,
)

from scqbm import QBMVI


def test_input_dropout_hides_its_share_in_training_only():
    model = trained(input_dropout=0.25)
    encoder, seen = model.module.z_encoder, []
    encoder.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    genes, batch = torch.ones(400, 30), torch.zeros(400, 1)
    for training in (True, False):
        encoder.train(training)(genes, batch)
    hidden = (seen[0] == 0).float().mean().item()
    assert hidden == pytest.approx(0.25, abs=0.03) and (seen[1] == 1).all()


def test_input_dropout_never_hides_covariates():
    adata = data()
    adata.obs["age"] = np.arange(adata.n_obs, dtype=float) + 1
    QBMVI.setup_anndata(adata, batch_key="batch", continuous_covariate_keys=["age"])
    model, seen = QBMVI(adata, encode_covariates=True, input_dropout=0.5, **BITS), []
    trunk = model.module.z_encoder.encoder
    trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.train(1, **QUIET)
    seen = torch.cat(
        [x for x in seen if x.shape[-1] == 31 and (x[:, :30] == 0).float().mean() > 0.4]
    )
    assert len(seen) >= 72 and (seen[:, 30] > 0).all()


@bits_or_normal
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_decoder_drops_its_share_in_training_only(family, share):
    model = trained(family, decoder_dropout=share, n_layers=2)
    decoder, inner = model.module.decoder.px_decoder, []
    for layer in decoder.fc_layers:  # ReLU's own zeros would count as dropped
        next(p for p in layer if isinstance(p, torch.nn.ReLU)).register_forward_hook(
            lambda *call: call[2] + 1
        )
    decoder.fc_layers[1][0].register_forward_pre_hook(lambda _, inputs: inner.append(inputs[0]))
    z, batch = torch.rand(400, model.module.n_latent), torch.zeros(400, 1, dtype=torch.long)
    for training in (True, False):
        for units in (decoder.train(training)(z, batch), inner.pop()[:, :16]):
            dropped = (units == 0).float().mean().item()
            assert dropped == pytest.approx(share * training, abs=0.03)


@pytest.mark.parametrize("wrong", [1.0, -0.1, "half"])
def test_bad_decoder_dropout(wrong):
    adata = data()
    QBMVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="`decoder_dropout`"):
        QBMVI(adata, decoder_dropout=wrong)


@pytest.mark.parametrize(
    ("family", "n", "dropout", "of_decoder", "bonus"),
    [
        (BITS, 80, 0.3, 0.292, 0.5),
        (BITS, 2000, 0.3, 0.1, 0.25),
        (BITS, 8000, 0.125, 0.0, 0.1),
        (NORMAL, 80, 0.0, 0.0, 0.0),
    ],
)
def test_fewer_cells_hide_more_and_settle_less(family, n, dropout, of_decoder, bonus):
    adata = data(batch_size=n // 2, n_genes=5)
    QBMVI.setup_anndata(adata)
    model = QBMVI(adata, **family)
    assert model.module.entropy_bonus == pytest.approx(bonus)
    if family is BITS:
        assert model.module.z_encoder.input_dropout.p == pytest.approx(dropout)
    dropouts = [m.p for m in model.module.decoder.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts == ([pytest.approx(of_decoder)] if of_decoder else [])


@pytest.mark.parametrize(
    ("family", "wrong"), [(BITS, 1.0), (BITS, -0.1), (BITS, "half"), (NORMAL, 0.1)]
)
def test_bad_input_dropout(family, wrong):
    adata = data()
    QBMVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="`input_dropout`"):
        QBMVI(adata, input_dropout=wrong, **family)
