"""The published recipe of QBM-VAE (arXiv 2508.11190) in our own writing, as a baseline.

256 bits smoothed by spikes and exponentials (Rolfe 2017) with beta .5, one hidden layer of 512,
batch one-hot to the decoder, squared error on log-normalised counts summed over genes, KL weight
1e-4, Adam at 1e-4 (prior at 1e-2), the smoothed draw as the embedding. These settings are those of
the authors' code (github.com/FengAoWang/scQuantaVita). Its energy terms have
slips that are not copied: here the prior learns by the right gradient, at a KL weight of 1e-4.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn.functional import one_hot

from scqbm.module import BitPosterior
from scqbm.prior import RBMPrior
from scqbm.samplers import GibbsSampler

BITS, HIDDEN, BETA, KL_WEIGHT, RATE, PRIOR_RATE, NEGATIVES = 256, 512, 0.5, 1e-4, 1e-4, 1e-2, 64


def smooth(logits, beta=BETA):
    """A draw that is 0 where the bit is 0 and follows exp(beta * x) on [0, 1] where it is 1."""
    q = logits.sigmoid().clamp(1e-6, 1 - 1e-6)
    above = torch.rand_like(q) - (1 - q)
    return (above.clamp(min=0) / q * math.expm1(beta)).log1p() / beta


def network(n_in, n_out):
    return nn.Sequential(
        nn.Linear(n_in, HIDDEN),
        nn.LayerNorm(HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(HIDDEN, n_out),
    )


def fit(values, batch, training, epochs, seed, batch_size=128):
    """Train on the cells ``training`` and embed all.

    ``values``: log-normalised, dense; ``batch``: codes from 0. Returns the embedding.
    """
    torch.manual_seed(seed)
    x = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    covariate = one_hot(torch.as_tensor(batch, dtype=torch.long)).float()
    encoder = network(x.shape[1], BITS)
    decoder = network(BITS + covariate.shape[1], x.shape[1])
    prior = RBMPrior(BITS, BITS)
    optimizer = torch.optim.Adam(
        [
            {"params": [*encoder.parameters(), *decoder.parameters()], "lr": RATE},
            {"params": prior.parameters(), "lr": PRIOR_RATE},
        ]
    )
    sampler, state = GibbsSampler(5), None
    generator = torch.Generator().manual_seed(seed)
    training = torch.as_tensor(training)
    for _ in range(epochs):
        for cells in training[torch.randperm(len(training))].split(batch_size):
            draws = sampler.sample(prior.rbm(), NEGATIVES, state, generator)
            state = draws.state
            prior.deliver(draws.visible, draws.weights)
            logits = encoder(x[cells])
            code = smooth(logits)
            q = BitPosterior(logits.sigmoid(), validate_args=False)
            # hard bits for the energy, with the slope of their probabilities
            z = (code > 0).float() + q.probs - q.probs.detach()
            error = (decoder(torch.cat([code, covariate[cells]], 1)) - x[cells]).square().sum(1)
            loss = (error + KL_WEIGHT * prior.kl(q, z)).mean() + KL_WEIGHT * prior.contrast(q, z)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    encoder.eval()
    with torch.no_grad():
        return torch.cat([smooth(encoder(part)) for part in x.split(4096)]).numpy()
