"""QBMVI, scvi.model.SCVI with a Boltzmann prior (long: all arguments of SCVI spelled out)."""

from __future__ import annotations

import os
from dataclasses import asdict
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from anndata import AnnData
from lightning.pytorch import LightningDataModule
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.model.base import BaseModelClass

from scqbm import _checks
from scqbm.model._cells import CellsMixin
from scqbm.model._counts import check_counts
from scqbm.model._landscape_mixin import LandscapeMixin
from scqbm.model._latent_mixin import LatentMixin
from scqbm.model._prior_mixin import BoltzmannPriorMixin
from scqbm.model._programs_mixin import ProgramsMixin
from scqbm.model._to_disk import ToDiskMixin
from scqbm.model._training import keeping_what_was_learnt, prepared, warn_of_few_cells
from scqbm.module import QBVAE, Relaxation
from scqbm.samplers import Sampler
from scqbm.train import QBMTrainingPlan, default_epochs

if TYPE_CHECKING:
    import networkx as nx


class _WithoutData(BaseModelClass):
    """Lets a model be made before its data: the base class allows that by class name only."""

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None):
        if adata is not None or registry is not None:
            super().__init__(adata, registry)
            return
        super().__init__(None, {"field_registries": {}})
        self._module_init_on_train = True
        del self.registry_, self.summary_stats


class QBMVI(
    ToDiskMixin,
    LandscapeMixin,
    ProgramsMixin,
    BoltzmannPriorMixin,
    LatentMixin,
    CellsMixin,
    SCVI,
    _WithoutData,
):
    """scVI with a Boltzmann prior: a drop-in replacement for :class:`scvi.model.SCVI`.

    The latent code of a cell follows a restricted Boltzmann machine (RBM) that is learnt with the
    rest, where scVI has the fixed prior N(0, I).

    Parameters
    ----------
    adata
        Cells with raw counts, registered by :meth:`QBMVI.setup_anndata`. ``None`` if the cells
        come from a datamodule.
    registry
        Registry of a datamodule, in the place of ``adata``.
    n_hidden
        Units of each hidden layer of the encoder and the decoder.
    n_latent
        Units of the code: by default 128 bits, or 10 real numbers with
        ``latent_distribution="normal"``.
    n_layers
        Hidden layers of the encoder and of the decoder.
    dropout_rate
        Share of its hidden units that the encoder drops in a training step.
    dispersion
        Dispersion of the counts: one for each gene (``"gene"``), or one for each gene in each
        batch, label or cell (``"gene-batch"``, ``"gene-label"``, ``"gene-cell"``).
    gene_likelihood
        Distribution of the counts: zero-inflated negative binomial (``"zinb"``), negative binomial
        (``"nb"``), ``"poisson"``, or ``"normal"`` for values that are not counts.
    use_observed_lib_size
        Scale the expected counts of a cell by its total count; ``False`` infers a size factor.
    latent_distribution
        ``"bernoulli"``: the code is bits with a factorial posterior. ``"normal"``: the code is
        continuous with scVI's Gaussian posterior. Its prior starts at N(0, I) and learns away
        from it.
    n_prior_hidden
        Hidden bits of the RBM besides the code: by default 64, or 32 for ``"normal"``. 0 makes the
        two halves of the code the layers of the RBM, as does ``prior_topology`` by default.
    relaxation
        How gradients pass the bits: ``"reinmax"``, ``"straight-through"`` or ``"gumbel"``, see
        :class:`scqbm.module.BitEncoder`.
    batch_mixing
        Weight of a penalty on codes that differ between batches: by default 50 for bits, and 0
        for ``"normal"``. It is multiplied by a tenth of the mean KL of the code in nats (by
        at least 0.1): the more information a code holds, the larger the penalty.
    input_dropout
        Share of the genes that the encoder of bits does not see in a training step. By default
        0.3 up to about 3,000 cells, and 1,000 / cells for more.
    decoder_dropout
        Share of its hidden units that the decoder drops in a training step. By default, with bits,
        0.3 minus 0.1 for each thousand cells (so 0 from 3,000 cells on), and 0 for ``"normal"``.
    entropy_bonus
        Weight of a bonus that keeps uninformative bits near 0.5. By default (1,000 / cells)², but
        at most 0.5 (up to 1,400 cells) and at least 0.1.
    prior_topology
        ``"zephyr"``, ``"pegasus"`` or the working graph of a chip: bits are coupled as the qubits
        of an annealer are, so that thousands of them fit on it. By default each unit of one layer
        is coupled to all of the other.
    prior
        ``"rbm"``: the prior is a restricted Boltzmann machine. ``"quantum"``: its hidden units are
        spins in a transverse field, which is learnt. The machine is then a quantum Boltzmann
        machine with a diagonal visible layer, the code.
    **kwargs
        More arguments of :class:`scqbm.module.QBVAE`, for example ``encode_covariates``, or
        ``transverse_field`` and ``learn_transverse_field`` for ``prior="quantum"``.

    Examples
    --------
    >>> QBMVI.setup_anndata(adata, batch_key="batch")
    >>> model = QBMVI(adata)
    >>> model.train()
    >>> adata.obsm["X_qbmvi"] = model.get_latent_representation()
    """

    _module_cls: type[Any] = QBVAE
    _training_plan_cls: type[Any] = QBMTrainingPlan
    _LATENT_QZM_KEY = "qbmvi_latent_qzm"
    _LATENT_QZV_KEY = "qbmvi_latent_qzv"

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int = 128,
        n_latent: int | None = None,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: Literal["bernoulli", "normal"] = "bernoulli",
        n_prior_hidden: int | None = None,
        relaxation: Relaxation = "reinmax",
        batch_mixing: float | None = None,
        input_dropout: float | None = None,
        decoder_dropout: float | None = None,
        entropy_bonus: float | None = None,
        prior_topology: Literal["zephyr", "pegasus"] | nx.Graph | None = None,
        prior: Literal["rbm", "quantum"] = "rbm",
        **kwargs,
    ):
        _checks.arguments(type(self).__name__, kwargs, self._known_arguments())
        _checks.whole("n_hidden", n_hidden)
        _checks.whole("n_layers", n_layers)
        if registry is not None:  # shipped datamodules sign theirs "SCVI", which load() rejects
            registry = {**registry, "model_name": type(self).__name__}
        super().__init__(
            adata,
            registry,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
            latent_distribution=latent_distribution,
            n_prior_hidden=n_prior_hidden,
            relaxation=relaxation,
            batch_mixing=batch_mixing,
            input_dropout=input_dropout,
            decoder_dropout=decoder_dropout,
            entropy_bonus=entropy_bonus,
            prior_topology=prior_topology,
            prior=prior,
            n_cells=_n_cells(adata, registry),
            **kwargs,
        )
        self._module_kwargs["use_observed_lib_size"] = use_observed_lib_size  # SCVI drops it
        if gene_likelihood != "normal" and self._adata is not None:
            check_counts(self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY), "negative")
        self._summarise()
        self.init_params_ = self._get_init_params(locals())
        if self.module is not None:  # a loaded model keeps its defaults, whatever data it gets
            self.init_params_["non_kwargs"] |= asdict(self.module.chosen)

    @classmethod
    def _known_arguments(cls) -> set[str]:
        """Arguments of the model and of its module."""
        classes = [QBMVI, *cls._module_cls.__mro__]
        inits = [vars(one)["__init__"] for one in classes if "__init__" in vars(one)]
        return {name for init in inits for name in signature(init).parameters}

    def _summarise(self) -> None:
        """What ``print(model)`` shows: every argument, with what the defaults came to."""
        names = (
            "n_hidden n_layers dropout_rate dispersion gene_likelihood latent_distribution prior"
        )
        given = [f"{name}: {self._module_kwargs[name]}" for name in (*names.split(), "relaxation")]
        if self.module is None:
            chosen = "the rest is chosen by the number of cells when training begins"
        else:
            chosen = str(self.module.chosen)
        self._model_summary_string = (
            f"{type(self).__name__} model with the following parameters: \n"
            f"{', '.join(given)}, {chosen}."
        )

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        **kwargs,
    ) -> None:
        """Register the cells, as :meth:`scvi.model.SCVI.setup_anndata` does.

        Parameters
        ----------
        adata
            The cells. Nothing in it is changed; fields of scvi-tools are added.
        layer
            Layer of ``adata`` with the raw counts; ``X`` by default.
        batch_key
            Column of ``adata.obs`` with the batches; one batch by default.
        labels_key
            Column of ``adata.obs`` with the cell types, for ``dispersion="gene-label"``.
        size_factor_key
            Column of ``adata.obs`` that scales the expected counts, in the place of the total
            count; not its logarithm.
        categorical_covariate_keys
            Columns of ``adata.obs`` with further categories that the code should not hold.
        continuous_covariate_keys
            Columns of ``adata.obs`` with numbers that the code should not hold.
        **kwargs
            For scvi-tools' own use.
        """
        super().setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            **kwargs,
        )
        manager = cls._get_most_recent_anndata_manager(adata)
        check_counts(manager.get_from_registry(REGISTRY_KEYS.X_KEY), "NaN or infinite")

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int = 128,
        early_stopping: bool = False,
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
            Epochs; by default a million divided by the number of cells, but 25 to 200, and never
            more than scvi-tools' choice. With more, small data overfit.
        accelerator
            ``"cpu"``, ``"gpu"`` or ``"auto"``.
        devices
            Devices to use, as :class:`lightning.pytorch.Trainer` takes them.
        train_size
            Share of the cells to train on; 0.9 by default.
        validation_size
            Share of the cells for validation; by default all others.
        shuffle_set_split
            ``False`` splits the cells in their order.
        load_sparse_tensor
            Move sparse minibatches to the device as they are; can help a GPU.
        batch_size
            Cells in a minibatch.
        early_stopping
            Stop when the validation ELBO no longer improves.
        datasplitter_kwargs
            More arguments of :class:`scvi.dataloaders.DataSplitter`.
        plan_config
            Defaults of ``plan_kwargs``.
        plan_kwargs
            Arguments of :class:`scqbm.train.QBMTrainingPlan`, for example ``{"lr": 1e-3}``.
        datamodule
            Where the cells come from if the model was made without ``adata``.
        trainer_config
            Defaults of ``trainer_kwargs``.
        sampler
            Where the negative phase comes from: any :class:`scqbm.samplers.Sampler`. By default
            persistent block Gibbs chains on the model's device.
        sample_every
            Query the sampler at every so many training steps (default 1).
        checkpoint_every
            Write ``last.ckpt`` to ``checkpoint_dir`` every so many steps: a training that was
            killed loses no more, and goes on with ``ckpt_path="qbmvi_checkpoints/last.ckpt"``.
        checkpoint_dir
            Folder of the checkpoints.
        **trainer_kwargs
            Arguments of :class:`scvi.train.Trainer`, for example ``check_val_every_n_epoch``.
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
        if self.module is None:
            if datamodule is None:
                raise AttributeError(  # as scvi-tools does, whose tests expect it
                    "`datamodule` must be given, since the model was made without `adata`."
                )
            self._module_kwargs["n_cells"] = _cells_of(datamodule)
            missing = [name for name in ("n_vars", "n_batch") if not hasattr(datamodule, name)]
            if missing:
                raise ValueError(
                    f"`datamodule` {type(datamodule).__name__} must have the attributes n_vars "
                    f"and n_batch, but it has no {' and no '.join(missing)}."
                )
        if max_epochs is None:
            source = self._adata if datamodule is None else datamodule
            n_cells = getattr(source, "n_obs", None)
            max_epochs = None if n_cells is None else default_epochs(n_cells)
        if plan_config is not None:
            trainer_kwargs["plan_config"] = plan_config
        if trainer_config is not None:
            trainer_kwargs["trainer_config"] = trainer_config
        with keeping_what_was_learnt(self):
            super().train(
                max_epochs,
                accelerator=accelerator,
                devices=devices,
                train_size=train_size,
                validation_size=validation_size,
                shuffle_set_split=shuffle_set_split,
                load_sparse_tensor=load_sparse_tensor,
                batch_size=batch_size,
                early_stopping=early_stopping,
                datasplitter_kwargs=datasplitter_kwargs,
                plan_kwargs=plan_kwargs,
                datamodule=datamodule,
                **trainer_kwargs,
            )

    def _check_if_trained(self, warn: bool = True, message: str | None = None) -> None:
        # SCANVI.from_scvi_model announces itself by this message only, then would load our weights
        # into a Gaussian encoder without complaint
        if message is not None and message.startswith("Passed in scvi model"):
            raise TypeError(
                "SCANVI.from_scvi_model cannot start from QBMVI: SCANVI assumes Gaussian latents "
                "under N(0, I). Use scqbm.QBMANVI.from_qbmvi_model."
            )
        super()._check_if_trained(warn, **({} if message is None else {"message": message}))


def _n_cells(adata: AnnData | None, registry: dict | None) -> int | None:
    """How many cells there are, as far as it is known before training."""
    if adata is not None:
        return adata.n_obs
    counts = ((registry or {}).get("field_registries") or {}).get(REGISTRY_KEYS.X_KEY) or {}
    return (counts.get("summary_stats") or {}).get("n_cells")


def _cells_of(datamodule: LightningDataModule) -> int | None:
    """How many cells a datamodule has, which it may know only once it is set up."""
    for is_set_up in (False, True):
        if is_set_up:
            datamodule.setup("fit")
        for names in (["n_obs"], ["n_samples"], ["n_train", "n_val", "n_test"]):
            n = sum(getattr(datamodule, name, None) or 0 for name in names)
            if n:
                return int(n)
    return None
