"""One small experiment for a design question; prints one JSON line.

python benchmarks/archive/explore.py '{"data": "pancreas_4studies", "model": {"n_latent": 64}}'

A bare training loop over dense counts of 1,000 genes, several times faster than Lightning on two
cores. Keys (all optional): cls ("SCVI"), model (arguments of the module), data, cells, genes,
epochs, lr, prior_lr, warmup (epochs), gain (of the bits' log-odds), couplings (false freezes them
at zero), sweeps, draws, decay (of the prior's weights), seed.

Kept for old lines of LOG.md; `benchmarks/cells/run.py --model` asks such questions today.
"""

import json
import sys

import numpy as np
import scanpy as sc
import torch
from scvi.module import VAE

import scqbm.module._bits
from scqbm import data
from scqbm.ising import log_partition
from scqbm.module import QBVAE
from scqbm.samplers import GibbsSampler


def cells(name, n_cells, n_genes):
    """Dense counts of the most variable genes, and the batch codes."""
    adata = data.load(name)
    if adata.n_vars > 2000:
        sc.pp.highly_variable_genes(adata, n_top_genes=2000, flavor="seurat_v3", batch_key="batch")
        adata = adata[:, adata.var["highly_variable"]]
    if adata.n_obs > n_cells:
        pick = np.random.default_rng(0).choice(adata.n_obs, n_cells, replace=False)
        adata = adata[np.sort(pick)]
    counts = adata.X.toarray()
    dispersion = counts.var(0) / np.maximum(counts.mean(0), 1e-3)
    counts = counts[:, np.argsort(-dispersion)[:n_genes]]
    kept = counts.sum(1) > 0
    codes = adata.obs["batch"].cat.codes.to_numpy(dtype=np.int64)
    return counts[kept], codes[kept]


def score(module, tensors, cells, repeats=5):
    """Negative ELBO and its two parts, in nats a cell."""
    module.eval()
    parts = np.zeros(2)
    with torch.no_grad():
        for _ in range(repeats):
            for batch in cells.split(512):
                _, _, out = module({k: v[batch] for k, v in tensors.items()})
                parts[0] += out.reconstruction_loss["reconstruction_loss"].sum().item()
                parts[1] += out.kl_local["kl_divergence_z"].sum().item()
    module.train()
    reconstruction, kl = parts / repeats / len(cells)
    return [round(float(x), 2) for x in (reconstruction + kl, reconstruction, kl)]


def main(config):
    get = config.get
    torch.set_num_threads(1)
    if "gain" in config:
        scqbm.module._bits._GAIN = config["gain"]
    counts, codes = cells(
        get("data", "pancreas_4studies"), get("cells", 10_000), get("genes", 1000)
    )
    tensors = {
        "X": torch.from_numpy(counts),
        "batch": torch.from_numpy(codes)[:, None],
        "labels": torch.zeros(len(counts), 1, dtype=torch.long),
    }
    seed = get("seed", 0)
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    held_out, training = order.split([len(counts) // 10, len(counts) - len(counts) // 10])
    torch.manual_seed(seed)
    cls = VAE if get("cls") == "SCVI" else QBVAE
    module = cls(counts.shape[1], int(codes.max()) + 1, gene_likelihood="nb", **get("model", {}))
    prior = getattr(module, "prior", None)
    lr = get("lr", 3e-3)
    groups = [{"params": [p for n, p in module.named_parameters() if "prior." not in n]}]
    if prior is not None:
        if not get("couplings", True):
            prior.coupling.requires_grad_(False).zero_()
        own = [p for p in prior.parameters() if p.requires_grad]
        groups += [{"params": own, "lr": get("prior_lr", lr), "weight_decay": get("decay", 1e-6)}]
    optimizer = torch.optim.Adam(groups, lr=lr, eps=0.01, weight_decay=1e-6)
    sampler, state = GibbsSampler(get("sweeps", 5)), None
    generator = torch.Generator().manual_seed(1)
    for epoch in range(get("epochs", 200)):
        kl_weight = min(1.0, epoch / get("warmup", 50))
        for batch in training[torch.randperm(len(training))].split(128):
            if prior is not None:
                draws = sampler.sample(prior.rbm(), get("draws", 256), state, generator)
                state = draws.state
                prior.deliver(draws.visible)
            _, _, out = module(
                {k: v[batch] for k, v in tensors.items()}, loss_kwargs={"kl_weight": kl_weight}
            )
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
    if prior is not None:
        prior.set_log_partition(log_partition(prior.rbm(), 2000, 1000, generator=generator))
    result = {
        "held_out": score(module, tensors, held_out),
        "train": score(module, tensors, training, 1),
    }
    if prior is not None:
        result["log_z"] = [round(prior.log_z.item(), 2), round(prior.log_z_error.item(), 3)]
        result["coupling_std"] = round(prior.coupling.std().item(), 2)
    print(json.dumps(config | result), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
