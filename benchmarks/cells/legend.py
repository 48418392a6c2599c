"""What the names in the tables stand for, for readers of docs/benchmark.md."""

METHOD_MEANINGS = {
    "noise": "a random embedding. It gets high scores for batch correction, so batch correction "
    "means something only together with bio conservation and macro-F1",
    "truth": "for simulated cells, the gene programmes from which their counts were drawn",
    "PCA": "50 principal components of log-normalised counts",
    "Harmony": "the same components, corrected by Harmony (harmonypy)",
    "SCVI-10": "scVI with 10 latents and one hidden layer, its default",
    "SCVI-30": "scVI with 30 latents and one hidden layer",
    "SCVI-10x2": "scVI with 10 latents and two hidden layers",
    "SCVI-30x2": "scVI with 30 latents and two hidden layers",
    "QBMVI": "our model at its defaults: 128 bits, and a learned prior with 64 hidden units",
    "QBMVI-normal": "continuous codes, without the steps of the prior that end a training",
    "QBMVI-unmixed": "without the batch-mixing penalty",
    "QBMVI-unsettled": "without the steps of the prior that end a training",
    "QBMVI-uncoupled": "the couplings of the prior fixed at zero",
    "QBMVI-frozen": "the prior fixed: independent bits with probability 0.5",
    "QBMVI-no-bonus": "without the entropy bonus",
    "QBMVI-no-dropouts": "without the dropout of genes and of the decoder",
    "QBMVI-constant-rate": "without the learning rates that fall towards the end",
    "QBMVI-halves": "the former prior: no hidden units, and two halves of the 128 bits are the "
    "layers of the prior",
    "QBMVI-28-exact": "28 bits, exact draws from the prior",
    "QBMVI-28-gibbs": "28 bits, the default sampler",
    "QBMVI-28-annealer": "28 bits, simulated annealing as the sampler",
    "SCVI-30+": "scVI with 30 latents and QBMVI's batch mixing, "
    "dropouts and schedule of learning rates",
    "SCVI-30-mixture": "the same as SCVI-30, but new cells are drawn from a Gaussian mixture that "
    "was fitted to the codes after training",
    "LDVAE": "scVI with a linear decoder",
    "SysVI": "SysVI of scvi-tools, with its VampPrior",
    "DRVI": "DRVI (drvi-py 0.2.8) at its default learning rate",
    "CONCORD": "CONCORD (concord-sc 1.0.13) with 50 epochs, each code scaled to length 1",
    "paper": "the published recipe of the QBM-VAE paper, in our implementation",
}

DATASET_MEANINGS = {
    "covid": "PBMC of COVID-19 patients (Liu 2021), 30,534 cells, three batches of the experiment",
    "kang": "PBMC with and without interferon beta (Kang 2018), 13,963 cells; the condition is "
    "the batch, so its effect is removed",
    "kang-donor": "the same cells; each donor under each condition is a batch (16)",
    "pancreas": "pancreas of four studies, 3,274 cells; the strongest technical differences",
    "simulated-tree": "3,000 simulated cells of a tree of cell types; the truth is known",
    "paul15": "bone marrow (Paul 2015), 2,730 cells, one batch, with a known order",
}
