"""What several test files need: small machines, seeds, and how an error must read."""

import torch

from scqbm.ising import RBM


def seeded(seed, device="cpu"):
    """A source of random numbers."""
    return torch.Generator(device=device).manual_seed(seed)


def random_rbm(n_visible, n_hidden, gaussian=False, seed=0, scale=1.0, bias=1.0, dtype=None):
    """A machine with normal couplings of standard deviation ``scale``; ``bias`` times for biases.

    In double precision unless ``dtype`` says otherwise.
    """
    g = seeded(seed)
    a, b, W = (
        scale * torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in ((n_visible,), (n_hidden,), (n_visible, n_hidden))
    )
    return RBM(bias * a, bias * b, W, gaussian).to(dtype or torch.float64)


def assert_one_sentence(error):
    """Users get one sentence, which ends in a full stop."""
    text = str(error)
    assert text.endswith(".") and "\n" not in text and ". " not in text, text
