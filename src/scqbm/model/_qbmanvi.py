"""QBMANVI, SCANVI of scvi-tools with a Boltzmann prior (long: all its arguments spelled out)."""

from __future__ import annotations

import os
import warnings
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from anndata import AnnData
from lightning.pytorch import LightningDataModule
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager
from scvi.data._constants import _SETUP_ARGS_KEY
from scvi.data._utils import _get_adata_minify_type, _is_minified
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LabelsWithUnlabeledObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.dataloaders import SemiSupervisedDataSplitter
from scvi.model.base import SemisupervisedTrainingMixin
from scvi.train._callbacks import SubSampleLabels

from scqbm.model._counts import check_counts
from scqbm.model._label_checks import check_known, check_labels, check_scanvi_arguments
from scqbm.model._labels_mixin import LabelsMixin
from scqbm.model._qbmvi import QBMVI
from scqbm.model._training import as_dict, keeping_what_was_learnt, prepared, warn_of_few_cells
from scqbm.module import QBANVAE
from scqbm.samplers import Sampler
from scqbm.train import QBMANVITrainingPlan, default_epochs


class QBMANVI(LabelsMixin, QBMVI, SemisupervisedTrainingMixin):
    """QBMVI for cells of which some have a known type, as :class:`scvi.model.SCANVI` is for SCVI.

    The label of a cell is a unit of the Boltzmann machine, with one value for each label. The
    prior is over the code and the label. It gives the probability of each label at a code, and a
    distribution of the codes of each label.

    Parameters
    ----------
    adata
        Cells with raw counts, registered by :meth:`QBMANVI.setup_anndata`.
    registry
        Registry of a datamodule, in the place of ``adata``.
    datamodule
        The datamodule with that registry.
    **kwargs
        Those of :class:`QBMVI`. Of SCANVI's, ``linear_classifier=True`` and
        ``use_labels_groups=False`` are what QBMANVI does.

    Examples
    --------
    >>> QBMANVI.setup_anndata(
    ...     adata, labels_key="cell_type", unlabeled_category="Unknown", batch_key="batch"
    ... )
    >>> model = QBMANVI(adata)
    >>> model.train()
    >>> adata.obs["predicted"] = model.predict()

    Notes
    -----
    To start from a trained QBMVI, see :meth:`from_qbmvi_model`.
    """

    _module_cls = QBANVAE
    _training_plan_cls = QBMANVITrainingPlan
    _data_splitter_cls = SemiSupervisedDataSplitter
    _LATENT_QZM_KEY = "qbmanvi_latent_qzm"
    _LATENT_QZV_KEY = "qbmanvi_latent_qzv"

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        datamodule: LightningDataModule | None = None,
        **kwargs,
    ):
        if adata is None and registry is None:
            raise ValueError("`adata` or `registry` must be given.")
        check_scanvi_arguments(kwargs)
        super().__init__(adata, registry, **kwargs)
        self._set_indices_and_labels(datamodule)
        self.n_labels = self.module.prior.n_labels
        self.was_pretrained = False
        # a loaded model keeps its defaults, whatever data it gets
        chosen = {**kwargs, **asdict(self.module.chosen)}
        self.init_params_ = {"kwargs": {"kwargs": chosen}, "non_kwargs": {}}

    @classmethod
    def setup_anndata(  # type: ignore[override]  # the arguments are those of SCANVI
        cls,
        adata: AnnData,
        labels_key: str,
        unlabeled_category: str,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        use_minified: bool = True,
        **kwargs,
    ) -> None:
        """Register the cells, as :meth:`scvi.model.SCANVI.setup_anndata` does.

        Parameters
        ----------
        adata
            The cells. Nothing in it is changed; fields of scvi-tools are added.
        labels_key
            Column of ``adata.obs`` with the cell types.
        unlabeled_category
            The value of that column for cells whose type is not known.
        layer, batch_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As in :meth:`QBMVI.setup_anndata`.
        use_minified
            Register the stored codes of minified data, if there are any.
        **kwargs
            For scvi-tools' own use.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        source = kwargs.get("source_registry")
        if source is None:
            check_labels(adata, labels_key, unlabeled_category)
        elif labels_key in adata.obs:
            check_known(adata.obs[labels_key], source)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=True),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            LabelsWithUnlabeledObsField(REGISTRY_KEYS.LABELS_KEY, labels_key, unlabeled_category),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
        minify_type = _get_adata_minify_type(adata)
        if minify_type is not None and use_minified:
            fields += cls._get_fields_for_adata_minification(minify_type)
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)
        check_counts(manager.get_from_registry(REGISTRY_KEYS.X_KEY), "NaN or infinite")

    @classmethod
    def from_qbmvi_model(
        cls,
        qbmvi_model: QBMVI,
        unlabeled_category: str,
        labels_key: str | None = None,
        adata: AnnData | None = None,
        **kwargs,
    ) -> QBMANVI:
        """Start from the weights of a trained :class:`QBMVI`.

        Parameters
        ----------
        qbmvi_model
            The trained model.
        unlabeled_category
            The value of ``labels_key`` for cells whose type is not known.
        labels_key
            Column of ``adata.obs`` with the cell types; by default the one that ``qbmvi_model``
            was set up with.
        adata
            The cells, with all columns that ``qbmvi_model`` was set up with; by default its own.
        **kwargs
            Arguments that ``qbmvi_model`` was not given.

        Examples
        --------
        >>> labelled = QBMANVI.from_qbmvi_model(model, "Unknown", labels_key="cell_type")
        >>> labelled.train()
        """
        if not isinstance(qbmvi_model, QBMVI):
            raise TypeError(
                f"`qbmvi_model` must be a QBMVI, not {type(qbmvi_model).__name__}, whose weights "
                "belong to another model."
            )
        qbmvi_model._check_if_trained(message="The QBMVI model has not been trained yet.")
        setup = deepcopy(qbmvi_model.registry[_SETUP_ARGS_KEY])
        labels_key = setup.pop("labels_key") if labels_key is None else labels_key
        setup.pop("labels_key", None)
        if labels_key is None:
            raise ValueError("`labels_key` must be given: the QBMVI model was set up without one.")
        if qbmvi_model._adata is None and adata is None:
            raise ValueError("`adata` must be given: the QBMVI model was trained without one.")
        if adata is None:
            adata = qbmvi_model.adata
        else:
            qbmvi_model._validate_anndata(adata)
        if _is_minified(adata):
            raise ValueError(
                "`adata` is minified, so the counts are gone: start from the model before "
                "minify_adata, or from a copy of its data."
            )
        params = qbmvi_model.init_params_
        inherited = {**params["non_kwargs"]}
        for more in params["kwargs"].values():
            inherited |= more
        if inherited.get("dispersion") == "gene-label":
            raise ValueError(
                "A QBMVI with `dispersion='gene-label'` has no value for cells without a label: "
                "make a QBMANVI from the data."
            )
        for name in kwargs.keys() & inherited.keys():
            warnings.warn(
                f"`{name}` is left out: the QBMVI model has {inherited[name]!r}.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        cls.setup_anndata(
            adata,
            labels_key=labels_key,
            unlabeled_category=unlabeled_category,
            use_minified=False,
            **setup,
        )
        model = cls(adata, **{**kwargs, **inherited})
        state = dict(qbmvi_model.module.state_dict())
        prior = {k.removeprefix("prior."): state.pop(k) for k in list(state) if "prior." in k}
        model.module.load_state_dict(state, strict=False)
        model.module.prior.start_from(prior)
        model.was_pretrained = True
        model._fit_label_unit()
        return model

    @classmethod
    def from_scvi_model(cls, scvi_model: QBMVI, *args, **kwargs) -> QBMANVI:
        """:meth:`from_qbmvi_model` under SCANVI's name."""
        return cls.from_qbmvi_model(scvi_model, *args, **kwargs)

    def train(  # type: ignore[override]  # the arguments are those of SCANVI
        self,
        max_epochs: int | None = None,
        n_samples_per_label: int | None = None,
        check_val_every_n_epoch: int | None = None,
        train_size: float = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        datasplitter_kwargs: dict | None = None,
        plan_config: Any = None,
        plan_kwargs: Any = None,
        datamodule: LightningDataModule | None = None,
        trainer_config: Any = None,
        *,
        sampler: Sampler | None = None,
        sample_every: int | None = None,
        checkpoint_every: int | None = None,
        checkpoint_dir: str | os.PathLike = "qbmvi_checkpoints",
        **trainer_kwargs,
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Epochs; by default those of :meth:`QBMVI.train`, and a third of them, but 2 to 10, if
            the model starts from a trained QBMVI.
        n_samples_per_label
            Cells of each label that are drawn in each epoch for the classification term; by
            default all.
        check_val_every_n_epoch
            Validate at every so many epochs.
        train_size, validation_size, shuffle_set_split, batch_size, accelerator, devices
            As in :meth:`QBMVI.train`.
        datasplitter_kwargs
            More arguments of :class:`scvi.dataloaders.SemiSupervisedDataSplitter`.
        plan_config
            Defaults of ``plan_kwargs``.
        plan_kwargs
            Arguments of :class:`scqbm.train.QBMANVITrainingPlan`, for example
            ``{"classification_ratio": 10}``.
        datamodule
            Where the cells come from if the model was made without ``adata``.
        trainer_config
            Defaults of ``trainer_kwargs``.
        sampler, sample_every, checkpoint_every, checkpoint_dir
            As in :meth:`QBMVI.train`. The sampler is asked once for each label.
        **trainer_kwargs
            Arguments of :class:`scvi.train.Trainer`.
        """
        plan_kwargs, trainer_kwargs = prepared(
            self,
            max_epochs,
            plan_kwargs,
            trainer_kwargs,
            accelerator=accelerator,
            trainer_config=trainer_config,
            sampler=sampler,
            sample_every=sample_every,
            checkpoint_every=checkpoint_every,
            checkpoint_dir=checkpoint_dir,
        )
        warn_of_few_cells(self)
        source = self._adata if datamodule is None else datamodule
        if max_epochs is None and hasattr(source, "n_obs"):
            max_epochs = default_epochs(source.n_obs)
            if self.was_pretrained:
                max_epochs = min(10, max(2, round(max_epochs / 3)))
        if self.was_pretrained:
            plan_kwargs = {"n_epochs_kl_warmup": None, **as_dict(plan_kwargs)}
        if trainer_kwargs.get("callbacks") and datamodule is None and len(self._labeled_indices):
            # SemisupervisedTrainingMixin forgets its own where there are others
            callbacks = [*trainer_kwargs["callbacks"], SubSampleLabels()]
            trainer_kwargs = {**trainer_kwargs, "callbacks": callbacks}
        with keeping_what_was_learnt(self):
            SemisupervisedTrainingMixin.train(
                self,
                max_epochs,
                n_samples_per_label=n_samples_per_label,
                check_val_every_n_epoch=check_val_every_n_epoch,
                train_size=train_size,
                validation_size=validation_size,
                shuffle_set_split=shuffle_set_split,
                batch_size=batch_size,
                accelerator=accelerator,
                devices=devices,
                datasplitter_kwargs=datasplitter_kwargs,
                plan_config=plan_config,
                plan_kwargs=plan_kwargs,
                datamodule=datamodule,
                trainer_config=trainer_config,
                **trainer_kwargs,
            )
            self._finish_posterior()

    def get_landscape(self, *args: Any, **kwargs: Any) -> AnnData:
        """Not for a prior with labels."""
        raise NotImplementedError(
            "get_landscape needs a prior without labels: call it on the QBMVI model."
        )

    def _summarise(self) -> None:
        super()._summarise()
        types = getattr(self, "n_labels", None)
        if types is not None:
            self._model_summary_string += (
                f" Labels: {types}; without a label: {self.unlabeled_category_!r}."
            )
