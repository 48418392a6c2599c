"""What a prior with a label unit says: predictions, energies and draws by label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model.base import SemisupervisedTrainingMixin
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from scqbm import _checks
from scqbm.ising import RBM, log_partition
from scqbm.model._cells import training_cells
from scqbm.model._conditions import Like
from scqbm.model._draws_mixin import DrawsMixin

if TYPE_CHECKING:  # what the mixin is mixed into

    class _Labelled(DrawsMixin, SemisupervisedTrainingMixin):
        n_labels: int
        train_indices_: np.ndarray
else:
    _Labelled = DrawsMixin


class LabelsMixin(_Labelled):
    """Methods of a model whose prior is a :class:`~scqbm.prior.LabelledPrior`."""

    def predict(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        soft: bool = False,
        batch_size: int | None = None,
        use_posterior_mean: bool = True,
        ig_interpretability: bool = False,
        ig_args: dict | None = None,
        dataloader: Iterable[dict[str, Tensor]] | None = None,
        *,
        reject: float = 0.0,
    ) -> Any:
        """The label of each cell, or the probability of each label.

        These are of ``q(y | x)``, a softmax that is linear in the cell's mean code and fitted to
        the known labels: after training, or during it if the cells came from a datamodule. What
        the prior says, ``p(y | z)``, is the softmax of minus :meth:`get_label_energies`.

        Parameters
        ----------
        adata
            The cells, with the genes of the training data; the training data by default.
        indices
            Positions of the cells, or a Boolean mask; all by default.
        soft
            Return a table with the probability of each label.
        batch_size
            Cells at a time; ``scvi.settings.batch_size`` by default.
        use_posterior_mean
            ``False`` predicts from one draw of each cell's code in the place of its mean.
        ig_interpretability, ig_args
            Also return what each gene contributes, as SCANVI does (needs captum).
        dataloader
            Minibatches in the place of ``adata``, as dictionaries of tensors.
        reject
            Give cells the unlabelled category if no label is probable enough: if their largest
            probability is below that of all but this share of the labelled training cells.

        Examples
        --------
        >>> adata.obs["predicted"] = model.predict(reject=0.01)
        """
        _checks.amount("reject", reject, below=1)
        self._check_if_trained(warn=False)
        if ig_interpretability:
            if reject > 0:
                raise ValueError("`reject` cannot be combined with ig_interpretability=True.")
            return SemisupervisedTrainingMixin.predict(
                self, adata, indices, soft, batch_size, use_posterior_mean, True, ig_args
            )
        names = self._names(adata, indices, dataloader)
        which = {
            "adata": adata,
            "indices": indices,
            "batch_size": batch_size,
            "dataloader": dataloader,
            "representation": "mean" if use_posterior_mean else "sample",
        }
        scores = self._scores(which)
        if soft:
            probabilities = scores.softmax(-1).numpy()
            return pd.DataFrame(probabilities, columns=self._types(), index=names)
        predicted = self._types()[scores.argmax(-1).numpy()]
        if reject > 0:
            trained = training_cells(self)  # none if the model was loaded with other data
            labelled = np.intersect1d(self._labeled_indices, [] if trained is None else trained)
            if len(labelled) == 0:
                raise ValueError(
                    "`reject` needs labelled cells among those that this model was trained on: "
                    "there are none."
                )
            usual = self._scores({"indices": labelled.astype(int)}).softmax(-1).amax(-1)
            doubtful = scores.softmax(-1).amax(-1) < np.quantile(usual, reject)
            predicted[doubtful.numpy()] = self.unlabeled_category_
        return predicted

    def get_label_energies(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        dataloader: Iterable[dict[str, Tensor]] | None = None,
    ) -> pd.DataFrame:
        """Energy of each cell's mean code together with each label: ``-log p(z, y)`` less log Z.

        The softmax of minus these energies is ``p(y | z)``, the prior's probability of each label
        at the cell's code. A cell whose least energy is high has a rare code. This says little of
        whether its type is new.

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As in :meth:`predict`.

        Examples
        --------
        >>> rare = model.get_label_energies().min(axis=1)
        """
        self._check_if_trained(warn=False)
        names = self._names(adata, indices, dataloader)
        which = {"adata": adata, "indices": indices, "batch_size": batch_size}
        energies = self._energies({**which, "dataloader": dataloader}).numpy()
        return pd.DataFrame(energies, columns=self._types(), index=names)

    def _names(self, adata: Any, indices: Any, dataloader: Any) -> pd.Index | None:
        """Names of the cells that were asked for, where they have any."""
        if dataloader is not None:
            return None
        self._need_cells("dataloader")
        names = self._validate_anndata(adata).obs_names
        return names if indices is None else names[_checks.which_cells(len(names), indices)]

    @torch.inference_mode()
    def _scores(self, which: dict[str, Any]) -> Tensor:
        """Scores of the labels for each cell: ``log q(y | x)`` up to what all labels share."""
        codes = torch.as_tensor(self.get_latent_representation(**which), device=self.device)
        return self.module.classifier(codes).cpu()

    @torch.inference_mode()
    def _energies(self, which: dict[str, Any]) -> Tensor:
        """Energy of each cell's code with each label."""
        prior = self.module.prior
        codes = torch.as_tensor(self.get_latent_representation(**which), device=self.device)
        without_label = prior.energy(codes) - prior.label_energy(codes)
        return (without_label.unsqueeze(-1) - prior.label_scores(codes)).cpu()

    def _machines(
        self,
        like: Like | None,
        strength: float,
        fixed: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[list[RBM], Tensor]:
        """One machine a label; labels that ``like`` asks for need no fields but their own."""
        prior = self.module.prior
        types, rbm = self._types(), prior.rbm()
        each = [
            rbm.shifted(*prior.layers(strength * u)) for u in prior.label_field.detach().to(rbm.W)
        ]
        if like is None:
            machines = [self._held(machine, fixed) for machine in prior.machines()]
            shares = prior.label_shares
            if fixed is not None:  # fixed units make some labels likelier
                given = prior.label_scores(fixed.nan_to_num(0.0), frozen=True).double().cpu()
                left = [log_partition(rbm, generator=generator).value for rbm in machines]
                shares = (given + torch.tensor(left)).softmax(0).to(shares)
            return machines, shares
        cells = self._cells_like(like)
        if isinstance(like, Mapping) and set(like) == {self.original_label_key}:
            labels = np.asarray(self.adata.obs[self.original_label_key])[cells]
            if self.unlabeled_category_ not in labels:
                asked = [i for i, name in enumerate(types) if name in labels]
                shares = torch.tensor([float((labels == types[i]).sum()) for i in asked])
                return [self._held(each[i], fixed) for i in asked], shares
        predicted = self._scores({"indices": cells}).argmax(-1).numpy()
        asked, counts = np.unique(predicted, return_counts=True)
        plain = prior.machines()
        machines = [
            self._held(
                self._resembling(plain[i], cells[predicted == i], strength, generator), fixed
            )
            for i in asked
        ]
        return machines, torch.tensor(counts, dtype=torch.float)

    def _types(self) -> np.ndarray:
        """Names of the labels, in the order of the scores."""
        return np.asarray(self._label_mapping[: self.n_labels], dtype=object)

    def _fit_label_unit(self) -> None:
        """Start label unit and posterior from a logistic regression of the labels on the codes."""
        self.module.eval()
        self.is_trained_ = True  # its codes are
        is_fitted = self._fit_posterior(self._labeled_indices)
        self.is_trained_ = False
        if is_fitted:
            prior, classifier = self.module.prior, self.module.classifier
            with torch.no_grad():
                prior.label_field.copy_(classifier.weight)
                prior.label_bias.copy_(classifier.bias)
            prior.set_log_partition(prior.log_partition())

    def _fit_posterior(self, cells: np.ndarray) -> bool:
        """Fit the posterior of the label to cells whose label is known: a logistic regression.

        This is the optimum of its cross entropy and penalty, which gradient steps reach slowly.
        False if the cells have fewer than two labels.
        """
        labels = np.asarray(self.labels_)[cells]
        if len(set(labels)) < 2:
            return False
        codes = np.asarray(self.get_latent_representation())
        # on one scale: with few labels the penalty decides which units count
        mean, scale = codes.mean(0), np.maximum(codes.std(0), 1e-6)
        fit = LogisticRegression(max_iter=2000).fit((codes[cells] - mean) / scale, labels)
        weights, bias = fit.coef_ / scale, fit.intercept_
        if len(fit.classes_) == 2:  # one row for two labels
            weights, bias = np.concatenate([-weights, weights]) / 2, np.array([-bias, bias]) / 2
        bias = bias.ravel() - weights @ mean
        types, classifier = list(self._types()), self.module.classifier
        with torch.no_grad():
            # a label without cells starts as unlikely as the rarest
            classifier.bias.fill_(float(bias.min()))
            classifier.weight.zero_()
            for name, w, b in zip(fit.classes_, weights, bias, strict=True):
                i = types.index(name)
                classifier.weight[i], classifier.bias[i] = torch.as_tensor(w), float(b)
            classifier.scale.copy_(torch.as_tensor(scale))
            classifier.weight_of_penalty.fill_(1 / (2 * len(labels)))  # as of the regression
        return True

    def _finish_posterior(self) -> None:
        """After training, take the optimum of the posterior for the codes as they are now.

        It learns from the training cells, and from others if a label has none among these. Not
        where a query lacks labels of its reference, which it would forget.
        """
        if self._adata is None or not self.module.classifier.weight.requires_grad:
            return
        known = np.asarray(self._labeled_indices)
        labels = np.asarray(self.labels_)[known]
        if set(labels) == set(self._types()):
            in_training = np.isin(known, self.train_indices_)
            alone = ~np.isin(labels, labels[in_training])
            self._fit_posterior(known[in_training | alone])
