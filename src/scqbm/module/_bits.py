"""The factorial posterior of the bits, and the encoder that draws differentiable bits."""

from __future__ import annotations

import sys
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

_EPS = 1e-6  # keeps log-probabilities of certain bits finite: at most 13.8 nats a bit
_GAIN = 2.0  # from head to log-odds: bits start away from 0.5 and learn faster

Relaxation = Literal["reinmax", "straight-through", "gumbel"]
RELAXATIONS = get_args(Relaxation)


class BitPosterior(Distribution):
    """Independent bits with probabilities ``probs``; element-wise, like ``Normal``.

    scvi-tools reads ``loc`` and ``scale`` off a posterior, rebuilds it from ``arg_constraints``
    and expects ``log_prob`` of the sample's shape; torch's ``Bernoulli`` offers none of these.
    Parameterised by ``probs``, so that ``loc`` is the same after it was stored.
    """

    arg_constraints = {"probs": constraints.unit_interval}
    support = constraints.unit_interval

    def __init__(self, probs: Tensor, validate_args: bool | None = None):
        self.probs = probs
        self._entropy: Tensor | None = None
        super().__init__(probs.shape, validate_args=validate_args)

    @property
    def loc(self) -> Tensor:
        """Probability that the bit is 1."""
        return self.probs

    mean = loc

    @property
    def variance(self) -> Tensor:
        """``p (1 - p)``."""
        return self.probs * (1 - self.probs)

    @property
    def scale(self) -> Tensor:
        """Standard deviation."""
        return self.variance.sqrt()

    @property
    def logits(self) -> Tensor:
        """Log-odds, finite for certain bits."""
        p = self.probs.clamp(_EPS, 1 - _EPS)
        return p.log() - (-p).log1p()

    def sample(self, sample_shape: torch.Size = ()) -> Tensor:
        """Hard bits."""
        with torch.no_grad():
            uniform = torch.rand(
                self._extended_shape(torch.Size(sample_shape)),
                dtype=self.probs.dtype,
                device=self.probs.device,
            )
            return (uniform < self.probs).to(self.probs.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Element-wise log-probability; for probabilities as ``value``, its expectation."""
        if self._validate_args:
            self._validate_sample(value)
        p = self.probs.clamp(_EPS, 1 - _EPS)
        return value * p.log() + (1 - value) * (-p).log1p()

    def entropy(self) -> Tensor:
        """Element-wise entropy in nats; computed once, as the KL and the bonus both need it."""
        if self._entropy is None:
            p = self.probs.clamp(_EPS, 1 - _EPS)
            self._entropy = -(p * p.log() + (1 - p) * (-p).log1p())
        return self._entropy

    def expand(self, batch_shape: torch.Size, _instance=None) -> BitPosterior:
        """The same bits broadcast to ``batch_shape``."""
        return BitPosterior(self.probs.expand(batch_shape), validate_args=False)


class GeneDropout(nn.Dropout):
    """Dropout of all genes of all cells, by a cheaper mask than torch's."""

    def forward(self, genes: Tensor) -> Tensor:
        """Hide each gene of each cell with probability ``p``, and scale the others up."""
        if not self.training or self.p == 0:
            return genes
        return (genes * _seen(genes, self.p)).div_(1 - self.p)


@torch.compiler.disable
def _seen(genes: Tensor, p: float) -> Tensor:
    """A byte for each gene of each cell: 0 with probability ``p``, else 1."""
    if genes.device.type != "cpu":
        return (torch.rand(genes.shape, device=genes.device) >= p).view(torch.uint8)
    # On a CPU, numpy's 16 random bits take far less time than one of torch's numbers; torch seeds
    # them, so that its seed fixes them too.
    seed, n = int(torch.randint(2**62, ())), genes.numel()
    bits = np.random.SFC64(seed).random_raw(-(-n // 4)).view(np.uint16)[:n]
    return torch.from_numpy(bits >= round(p * 2**16)).view(torch.uint8).view(genes.shape)


class BitEncoder(nn.Module):
    """SCVI's encoder whose mean is read as the log-odds of bits.

    The code is hard bits in training as in evaluation, so the ELBO is that of the discrete model.
    Only the gradient is approximate. The derivative of a bit by its log-odds is taken to be:

    ``"reinmax"``
        half the distance of the bit from its probability, which is exact on average for a decoder
        that is quadratic in each bit (Liu et al. 2023, for two classes);
    ``"straight-through"``
        the slope of the probability;
    ``"gumbel"``
        the slope of the binary concrete draw (Maddison et al. 2017).

    Parameters
    ----------
    encoder
        The trunk, ``scvi.nn.FCLayers``.
    mean_encoder
        Linear head, one output a bit.
    relaxation
        One of the above.
    temperature
        Temperature of ``"gumbel"``.
    input_dropout
        Share of the genes that the trunk does not see of each cell in training.
    n_genes
        How many of the inputs are genes, all by default; covariates after them are always seen.
    """

    def __init__(
        self,
        encoder: nn.Module,
        mean_encoder: nn.Linear,
        relaxation: Relaxation = "reinmax",
        temperature: float = 0.5,
        input_dropout: float = 0.0,
        n_genes: int | None = None,
    ):
        super().__init__()
        self.input_dropout = GeneDropout(input_dropout)
        self.n_genes = sys.maxsize if n_genes is None else n_genes
        self.encoder = encoder
        self.mean_encoder = mean_encoder
        self.relaxation = relaxation
        self.temperature = temperature

    @staticmethod
    def z_transformation(z: Tensor) -> Tensor:
        """Bits need none."""
        return z

    def forward(self, x: Tensor, *cat_list: Tensor) -> tuple[BitPosterior, Tensor]:
        """Posterior and one draw of the bits."""
        genes, covariates = x[..., : self.n_genes], x[..., self.n_genes :]
        seen = self.input_dropout(genes)
        if covariates.shape[-1] > 0:
            seen = torch.cat([seen, covariates], -1)
        head = self.mean_encoder(self.encoder(seen, *cat_list))
        logits = _GAIN * (head if head.dtype == torch.float64 else head.float())
        qz = BitPosterior(logits.sigmoid(), validate_args=False)
        return qz, draw_bits(logits, self.relaxation, self.temperature).to(head.dtype)


def draw_bits(logits: Tensor, relaxation: Relaxation, temperature: float = 0.5) -> Tensor:
    """Hard bits, drawn as :meth:`BitPosterior.sample` does, with a gradient to ``logits``."""
    p = logits.sigmoid()
    u = torch.rand_like(p)
    bits = (u < p).to(p.dtype)
    if relaxation == "reinmax":
        slope = (bits - p).abs() / 2
    elif relaxation == "straight-through":
        slope = p * (1 - p)
    else:
        soft = ((logits - torch.logit(u, _EPS)) / temperature).sigmoid()
        slope = soft * (1 - soft) / temperature
    return bits + slope.detach() * (logits - logits.detach())
