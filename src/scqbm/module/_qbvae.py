"""scVI's module with a Boltzmann prior (long: all arguments of scVI's are spelled out)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module import VAE
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from scvi.utils import unsupported_if_adata_minified
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence

from scqbm._checks import one_of, positive
from scqbm.likelihood import sparse
from scqbm.module._bits import RELAXATIONS, BitEncoder, BitPosterior, Relaxation
from scqbm.module._boltzmann import BoltzmannMixin
from scqbm.module._defaults import Defaults, check_family
from scqbm.prior import RBMPrior, TransverseFieldPrior

if TYPE_CHECKING:
    import networkx as nx

PRIORS = ("rbm", "quantum")
GENE_LIKELIHOODS = ("zinb", "nb", "poisson", "normal")


class QBVAE(BoltzmannMixin, VAE):
    """:class:`scvi.module.VAE` whose code follows a restricted Boltzmann machine.

    Parameters
    ----------
    n_input
        Genes.
    n_batch
        Batches.
    n_labels
        Cell types, for ``dispersion="gene-label"``.
    n_hidden
        Units of each hidden layer of the encoder and the decoder.
    n_latent
        Units of the code; by default 128 bits or 10 real numbers.
    n_layers
        Hidden layers of the encoder and of the decoder.
    n_continuous_cov
        Continuous covariates.
    n_cats_per_cov
        Categories of each categorical covariate.
    dropout_rate
        Share of its hidden units that the encoder drops in a training step.
    dispersion
        ``"gene"``, ``"gene-batch"``, ``"gene-label"`` or ``"gene-cell"``.
    log_variational
        Whether the encoder sees log(1 + counts).
    gene_likelihood
        ``"zinb"``, ``"nb"``, ``"poisson"`` or ``"normal"``.
    latent_distribution
        ``"bernoulli"`` (bits) or ``"normal"`` (continuous under a Gaussian-Bernoulli RBM).
    encode_covariates, deeply_inject_covariates, batch_representation
        How covariates enter the networks, see :class:`scvi.module.VAE`.
    use_batch_norm, use_layer_norm
        Which networks are normalised: ``"encoder"``, ``"decoder"``, ``"both"`` or ``"none"``.
    use_size_factor_key, use_observed_lib_size, library_log_means, library_log_vars
        Where the depth of a cell comes from, see :class:`scvi.module.VAE`.
    extra_payload_autotune
        For scvi-tools' autotune.
    var_activation, extra_encoder_kwargs, extra_decoder_kwargs, batch_embedding_kwargs
        Passed to the networks, see :class:`scvi.module.VAE`.
    n_prior_hidden
        Hidden bits of the RBM besides the code; 0 makes the two halves of the code its layers. By
        default 64 for bits (0 with ``prior_topology``) and 32 for continuous codes.
    relaxation
        Gradient through the bits, see :class:`~scqbm.module.BitEncoder`.
    temperature
        Temperature of the relaxation, where it has one.
    batch_mixing
        Weight of a penalty on codes that differ between batches
        (:func:`~scqbm.module.mixing_penalty`), for codes whose KL is 10 nats a cell and in
        proportion for others; 0 leaves the negative ELBO. It is not part of any reported ELBO and
        is active from the first epoch. By default 50 for bits and 0 for continuous codes.
    input_dropout
        Share of the genes that the encoder does not see in a training step, against overfitting.
        For bits only.
    decoder_dropout
        Share of its hidden units that the decoder drops in a training step, against overfitting.
    entropy_bonus
        Weight of a bonus for the entropy of the bits' posterior: uninformative bits stay near 0.5,
        where the prior would otherwise sort cells into many small clusters. It is not part of any
        reported ELBO and is active from the first epoch. For bits only.
    prior_topology
        ``"zephyr"`` or ``"pegasus"`` couples only the units that an annealer's chip couples, so
        that no chains are needed there. The working graph of a chip
        (:attr:`scqbm.samplers.QPUSampler.graph`) also avoids its missing qubits. ``None`` couples
        all units of one layer to all of the other.
    prior
        ``"rbm"``, or ``"quantum"``: each hidden unit is a spin in a transverse field
        (:class:`~scqbm.prior.TransverseFieldPrior`).
    transverse_field
        Field of ``"quantum"`` at the start, in units of the temperature.
    learn_transverse_field
        Whether that field is learnt, for each hidden unit on its own.
    n_cells
        Cells of the training data, by which :class:`~scqbm.module.Defaults` chooses what was left
        out; ``None`` if it is not known.
    """

    z_encoder: Any  # scVI's, or one of bits

    def __init__(
        self,
        n_input: int,
        n_batch: int = 0,
        n_labels: int = 0,
        n_hidden: int = 128,
        n_latent: int | None = None,
        n_layers: int = 1,
        n_continuous_cov: int = 0,
        n_cats_per_cov: list[int] | None = None,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        log_variational: bool = True,
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        latent_distribution: Literal["bernoulli", "normal"] = "bernoulli",
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: Literal["one-hot", "embedding"] = "one-hot",
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        use_size_factor_key: bool = False,
        use_observed_lib_size: bool = True,
        extra_payload_autotune: bool = False,
        library_log_means: np.ndarray | None = None,
        library_log_vars: np.ndarray | None = None,
        var_activation: Callable[[Tensor], Tensor] | None = None,
        extra_encoder_kwargs: dict | None = None,
        extra_decoder_kwargs: dict | None = None,
        batch_embedding_kwargs: dict | None = None,
        n_prior_hidden: int | None = None,
        relaxation: Relaxation = "reinmax",
        temperature: float = 0.5,
        batch_mixing: float | None = None,
        input_dropout: float | None = None,
        decoder_dropout: float | None = None,
        entropy_bonus: float | None = None,
        prior_topology: Literal["zephyr", "pegasus"] | nx.Graph | None = None,
        prior: Literal["rbm", "quantum"] = "rbm",
        transverse_field: float = 1.0,
        learn_transverse_field: bool = True,
        n_cells: int | None = None,
    ):
        check_family(latent_distribution)
        one_of("prior", prior, PRIORS)
        one_of("relaxation", relaxation, RELAXATIONS)
        one_of("gene_likelihood", gene_likelihood, GENE_LIKELIHOODS)
        positive("temperature", temperature)
        if prior_topology is not None and latent_distribution != "bernoulli":
            raise ValueError(
                "`prior_topology` needs bits (latent_distribution='bernoulli'): a chip has no "
                "Gaussian units, and integrating them out couples all hidden bits."
            )
        native = prior_topology is not None and prior != "quantum"
        chosen = Defaults.for_cells(n_cells, latent_distribution, native).with_given(
            n_latent=n_latent,
            n_prior_hidden=n_prior_hidden,
            batch_mixing=batch_mixing,
            input_dropout=input_dropout,
            decoder_dropout=decoder_dropout,
            entropy_bonus=entropy_bonus,
        )
        chosen.check(latent_distribution)
        super().__init__(
            n_input=n_input,
            n_batch=n_batch,
            n_labels=n_labels,
            n_hidden=n_hidden,
            n_latent=chosen.n_latent,
            n_layers=n_layers,
            n_continuous_cov=n_continuous_cov,
            n_cats_per_cov=n_cats_per_cov,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            log_variational=log_variational,
            gene_likelihood=gene_likelihood,
            latent_distribution="normal",  # SCVI's encoder; bits take its mean head below
            encode_covariates=encode_covariates,
            deeply_inject_covariates=deeply_inject_covariates,
            batch_representation=batch_representation,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            use_size_factor_key=use_size_factor_key,
            use_observed_lib_size=use_observed_lib_size,
            extra_payload_autotune=extra_payload_autotune,
            library_log_means=library_log_means,
            library_log_vars=library_log_vars,
            var_activation=var_activation,
            extra_encoder_kwargs=extra_encoder_kwargs,
            extra_decoder_kwargs=extra_decoder_kwargs,
            batch_embedding_kwargs=batch_embedding_kwargs,
        )
        self.latent_distribution = latent_distribution
        if latent_distribution == "bernoulli":
            self.z_encoder = BitEncoder(
                self.z_encoder.encoder,
                self.z_encoder.mean_encoder,
                relaxation,
                temperature,
                chosen.input_dropout,
                n_genes=n_input,
            )
        if chosen.decoder_dropout > 0:
            for layer in self.decoder.px_decoder.fc_layers:
                layer[-1] = nn.Dropout(chosen.decoder_dropout)  # SCVI leaves this place empty
        if gene_likelihood != "zinb":
            self.decoder.px_dropout_decoder.register_forward_pre_hook(_no_cells)
        self.chosen = chosen  # what the defaults came to
        self.batch_mixing = chosen.batch_mixing
        self.entropy_bonus = chosen.entropy_bonus
        kind: Any = RBMPrior
        if prior == "quantum":
            kind = partial(
                TransverseFieldPrior, gamma=transverse_field, learn_gamma=learn_transverse_field
            )
        self.prior = kind(
            chosen.n_latent,
            chosen.n_prior_hidden,
            gaussian=latent_distribution == "normal",
            topology=prior_topology,
        )

    def _get_inference_input(
        self, tensors: dict[str, Tensor | None], full_forward_pass: bool = False
    ) -> dict[str, Tensor | None]:
        """SCVI's; a minibatch from a foreign loader that does not fit gets a sentence."""
        needed = [REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.BATCH_KEY]
        if self.dispersion == "gene-label":
            needed.append(REGISTRY_KEYS.LABELS_KEY)
        missing = [key for key in needed if tensors.get(key) is None]
        if missing:
            raise ValueError(
                f"A minibatch holds no {' and no '.join(map(repr, missing))}, only "
                f"{sorted(tensors)}: the loader or datamodule must give them."
            )
        x: Any = tensors[REGISTRY_KEYS.X_KEY]
        n_genes = x.shape[-1]
        if n_genes != self.n_input and self.minified_data_type is None:
            raise ValueError(f"A minibatch has {n_genes} genes, but the model {self.n_input}.")
        return super()._get_inference_input(tensors, full_forward_pass=full_forward_pass)

    @auto_move_data
    def _cached_inference(
        self, qzm: Tensor, qzv: Tensor, observed_lib_size: Tensor, n_samples: int = 1
    ) -> dict[str, Tensor | Distribution | None]:
        """Posterior and code from minified data."""
        if self.latent_distribution == "normal":
            return super()._cached_inference(qzm, qzv, observed_lib_size, n_samples)
        qz = BitPosterior(qzm, validate_args=False)
        library = observed_lib_size.log()
        if n_samples > 1:
            library = library.expand(n_samples, *library.shape)
        return {
            MODULE_KEYS.Z_KEY: qz.sample(() if n_samples == 1 else (n_samples,)),
            MODULE_KEYS.QZ_KEY: qz,
            MODULE_KEYS.QL_KEY: None,
            MODULE_KEYS.LIBRARY_KEY: library,
        }

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        library: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        y: Tensor | None = None,
        transform_batch: Tensor | None = None,
    ) -> dict[str, Distribution | None]:
        """SCVI's, with counts whose log-probability is fast."""
        out = super().generative(
            z, library, batch_index, cont_covs, cat_covs, size_factor, y, transform_batch
        )
        return out | {MODULE_KEYS.PX_KEY: sparse(out[MODULE_KEYS.PX_KEY])}

    def known(self, tensors: dict[str, Tensor], qz: Distribution) -> dict[str, Tensor]:
        """What the prior is told of the cells besides their codes: nothing here."""
        return {}

    @unsupported_if_adata_minified
    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        """Negative ELBO plus the penalty of batch mixing, minus the bonus on entropy.

        Only the KL is scaled by ``kl_weight``; the prior's own learning signal is not.
        """
        qz, z = inference_outputs[MODULE_KEYS.QZ_KEY], inference_outputs[MODULE_KEYS.Z_KEY]
        x = tensors[REGISTRY_KEYS.X_KEY]
        reconstruction = -generative_outputs[MODULE_KEYS.PX_KEY].log_prob(x).sum(-1)
        batch, known = tensors[REGISTRY_KEYS.BATCH_KEY], self.known(tensors, qz)
        terms = self.boltzmann_terms(qz, z, batch, self.n_batch, **known)
        kl_l = torch.zeros_like(terms.kl)
        if not self.use_observed_lib_size:
            ql, pl = inference_outputs[MODULE_KEYS.QL_KEY], generative_outputs[MODULE_KEYS.PL_KEY]
            kl_l = kl_divergence(ql, pl).sum(1)
        loss = terms.add_to((reconstruction + kl_weight * terms.kl + kl_l).mean())
        extra = terms.metrics()
        if self.extra_payload_autotune:
            extra |= {
                "z": z,
                "batch": tensors[REGISTRY_KEYS.BATCH_KEY],
                "labels": tensors[REGISTRY_KEYS.LABELS_KEY],
            }
        return LossOutput(
            loss=loss,
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_L_KEY: kl_l, MODULE_KEYS.KL_Z_KEY: terms.kl},
            extra_metrics=extra,
        )

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int = 1,
    ) -> Tensor | float:
        """Importance-weighted ``log p(x)`` per cell, with the RBM as ``p(z)``.

        Parameters
        ----------
        tensors
            Minibatch.
        n_mc_samples
            Draws from the posterior.
        return_mean
            Whether to average over cells.
        n_mc_samples_per_pass
            Draws at a time.
        """
        passes, left = [], n_mc_samples
        while left > 0:
            n = min(left, n_mc_samples_per_pass)
            left -= n
            inference, generative, losses = self.forward(
                tensors,
                inference_kwargs={"n_samples": n},
                get_inference_input_kwargs={"full_forward_pass": True},
            )
            qz, z = inference[MODULE_KEYS.QZ_KEY], inference[MODULE_KEYS.Z_KEY]
            log_weight = (
                self.prior.log_prob(z)
                - qz.log_prob(z).sum(-1)
                - losses.dict_sum(losses.reconstruction_loss)
            )
            if not self.use_observed_lib_size:
                library = inference[MODULE_KEYS.LIBRARY_KEY]
                mean, var = self._compute_local_library_params(tensors[REGISTRY_KEYS.BATCH_KEY])
                log_weight += Normal(mean, var.sqrt()).log_prob(library).sum(-1)
                log_weight -= inference[MODULE_KEYS.QL_KEY].log_prob(library).sum(-1)
            passes.append(log_weight.reshape(n, -1))
        log_likelihood = torch.cat(passes).logsumexp(0) - math.log(n_mc_samples)
        return log_likelihood.mean().item() if return_mean else log_likelihood.cpu()


def _no_cells(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Spares the decoder's head of extra zeros its work where the likelihood has none."""
    return inputs[0][:0]
