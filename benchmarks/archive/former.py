"""Settings that `elbo.csv` and `sampler_training.csv` were made with.

The defaults of that day, named so that their commands still print them; `benchmarks/cells/run.py`
has today's.
"""

BITS = {
    "n_prior_hidden": 0,
    "batch_mixing": 100.0,
    "input_dropout": 0.0,
    "decoder_dropout": 0.0,
    "entropy_bonus": 0.0,
}
PLAN = {"n_epochs_constant_lr": None, "settle": False}
