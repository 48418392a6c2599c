"""QBVAE with a label unit in its prior, for cells of which some have a known type."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, SupervisedModuleClass, auto_move_data
from torch import Tensor
from torch.nn.functional import cross_entropy

from scqbm.module._qbvae import QBVAE
from scqbm.prior import LabelledPrior

KL_LABEL = "kl_divergence_label"  # in the loss's record, beside those of scvi-tools


class QBANVAE(SupervisedModuleClass, QBVAE):
    """:class:`QBVAE` whose prior is over the code and the label of a cell.

    The label of a cell has the posterior ``q(y | x) = softmax(c + U.E_q[z])``: that of the prior's
    label unit at the mean code. There is no classifier besides. A cell without a label is scored
    with this posterior. A cell with one pays its cross entropy ``-log q(y | x)`` on top, which
    makes its loss the bound on ``log p(x, y)``. ``classification_ratio`` adds more of it.

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
    classifier = SimpleNamespace(logits=True)  # what SCANVI's methods ask of theirs

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

    @auto_move_data
    def classify_helper(self, z: Tensor) -> Tensor:
        """Scores of the labels, of which the softmax is ``p(y | z)``."""
        return self.prior.label_scores(z)

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
        labels = tensors[REGISTRY_KEYS.LABELS_KEY].view(-1).long()
        known = labels < self.prior.n_labels
        scores = self.prior.label_scores(inference_outputs[MODULE_KEYS.QZ_KEY].loc)
        surprise = scores.new_zeros(scores.shape[:-1])
        surprise[known] = cross_entropy(scores[known], labels[known], reduction="none")
        record = {"loss": out.loss + surprise.mean()}
        if labelled_tensors is not None:
            cross, true_labels, logits = self.classification_loss(labelled_tensors)
            record["loss"] = record["loss"] + classification_ratio * cross
            record |= {"classification_loss": cross, "true_labels": true_labels, "logits": logits}
        return replace(out, kl_local={**out.kl_local, KL_LABEL: surprise}, **record)
