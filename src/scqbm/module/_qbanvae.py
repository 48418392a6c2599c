"""QBVAE with a label unit in its prior, for cells of which some have a known type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, SupervisedModuleClass, auto_move_data
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import one_hot

from scqbm.module._qbvae import QBVAE
from scqbm.prior import LabelledPrior


class LabelPosterior(nn.Linear):
    """``q(y | x)``: a softmax that is linear in the mean code, learnt from known labels only.

    Parameters
    ----------
    n_latent
        Units of the code.
    n_labels
        Labels.
    """

    logits = True  # what SCANVI's methods ask of a classifier
    scale: Tensor

    def __init__(self, n_latent: int, n_labels: int):
        super().__init__(n_latent, n_labels)
        self.register_buffer("scale", torch.ones(n_latent))  # spread of the code's units
        self.register_buffer("weight_of_penalty", torch.zeros(()))

    def penalty(self) -> Tensor:
        """Of large weights, as of a logistic regression on codes of one scale."""
        return self.weight_of_penalty * (self.weight * self.scale).square().sum()


class QBANVAE(SupervisedModuleClass, QBVAE):
    """:class:`QBVAE` whose prior is over the code and the label of a cell.

    ``p(y | z)`` is the prior's label unit (:class:`~scqbm.prior.LabelledPrior`). In training, the
    label of a cell without one has the posterior of :class:`LabelPosterior`, which learns from the
    cross entropy of known labels only. If it were the label unit's own ``p(y | z)``, the unit
    would confirm itself, and labels would drift to other groups of cells.
    Gradient steps reach its optimum slowly, so the model fits it once more after training.

    Parameters
    ----------
    n_input
        Genes.
    n_batch
        Batches.
    n_labels
        Labels, of which the last one stands for cells without a label.
    **kwargs
        Those of :class:`QBVAE`.
    """

    prior: LabelledPrior
    use_labels_groups = False  # which SCANVI's module has

    def __init__(self, n_input: int, n_batch: int = 0, n_labels: int = 3, **kwargs: Any):
        if kwargs.get("prior", "rbm") != "rbm":
            raise ValueError("`prior` must be 'rbm' for a model with labels.")
        super().__init__(n_input, n_batch=n_batch, n_labels=n_labels, **kwargs)
        plain = self.prior
        self.prior = LabelledPrior(
            n_labels - 1,
            self.chosen.n_latent,
            self.chosen.n_prior_hidden,
            gaussian=plain.gaussian,
            topology=kwargs.get("prior_topology"),
        )
        self.prior.start_from(plain.state_dict())
        self.classifier = LabelPosterior(self.chosen.n_latent, n_labels - 1)

    @auto_move_data
    def classify_helper(self, z: Tensor) -> Tensor:
        """Scores of ``q(y | x)`` at a mean code."""
        return self.classifier(z)

    def known(self, tensors: dict[str, Tensor], qz: Distribution) -> dict[str, Tensor]:
        """The posterior of each label: certain where it is known."""
        labels = tensors[REGISTRY_KEYS.LABELS_KEY].view(-1).long()
        with torch.no_grad():
            posterior = self.classifier(qz.loc).softmax(-1)
        certain = one_hot(labels.clamp(max=self.prior.n_labels - 1), self.prior.n_labels)
        is_known = (labels < self.prior.n_labels).unsqueeze(-1)
        return {"labels": torch.where(is_known, certain.to(posterior), posterior)}

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float = 1.0,
        labelled_tensors: dict[str, Tensor] | None = None,
        classification_ratio: float = 0.0,
    ) -> LossOutput:
        """QBVAE's loss, and the cross entropy of the known labels.

        Parameters
        ----------
        tensors, inference_outputs, generative_outputs, kl_weight
            As in :class:`QBVAE`.
        labelled_tensors
            Cells with a label, whose mean cross entropy is added.
        classification_ratio
            Weight of that.
        """
        out = super().loss(tensors, inference_outputs, generative_outputs, kl_weight)
        if labelled_tensors is None:
            return out
        cross, true_labels, logits = self.classification_loss(labelled_tensors)
        return replace(
            out,
            loss=out.loss + classification_ratio * (cross + self.classifier.penalty()),
            classification_loss=cross,
            true_labels=true_labels,
            logits=logits,
        )
