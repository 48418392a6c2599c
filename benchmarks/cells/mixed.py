"""SCVI with every extra term of QBMVI that is not its prior: `SCVI-30+` of the benchmark."""

from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.module import VAE
from scvi.module._constants import MODULE_KEYS
from scvi.train import TrainingPlan
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from scqbm.module import Defaults, mixing_penalty
from scqbm.module._bits import GeneDropout
from scqbm.train import Falling


class MixedVAE(VAE):
    """N(0, I) with QBMVI's mixing penalty and dropouts; the bonus of entropy is for bits."""

    def __init__(self, n_input, *args, n_cells=None, **kwargs):
        super().__init__(n_input, *args, **kwargs)
        chosen = Defaults.for_cells(n_cells)
        self.batch_mixing = chosen.batch_mixing
        self.hide = GeneDropout(chosen.input_dropout)
        self.z_encoder.register_forward_pre_hook(
            lambda _, inputs: (self.hide(inputs[0]), *inputs[1:])
        )
        for layer in self.decoder.px_decoder.fc_layers:
            layer[-1] = nn.Dropout(chosen.decoder_dropout)

    def loss(self, tensors, inference_outputs, generative_outputs, kl_weight=1.0):
        out = super().loss(tensors, inference_outputs, generative_outputs, kl_weight)
        if self.n_batch > 1:
            codes = inference_outputs[MODULE_KEYS.QZ_KEY].loc
            batch = tensors[REGISTRY_KEYS.BATCH_KEY]
            kl = out.kl_local[MODULE_KEYS.KL_Z_KEY]
            penalty = mixing_penalty(codes, batch, self.n_batch, kl)
            out.loss = out.loss + self.batch_mixing * penalty
        return out


class FallingPlan(TrainingPlan):
    """QBMVI's schedule of learning rates."""

    def configure_optimizers(self):
        config = super().configure_optimizers()
        scheduler = LambdaLR(config["optimizer"], Falling(self.trainer.max_epochs))
        return config | {"lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


class MixedSCVI(SCVI):
    _module_cls = MixedVAE
    _training_plan_cls = FallingPlan

    def __init__(self, adata, **kwargs):
        super().__init__(adata, n_cells=adata.n_obs, **kwargs)
