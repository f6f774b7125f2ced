"""Entropy of a mixture of Gaussians of one width."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["mixture_entropy"]

_NODES = 16
_ELEMENTS = 2**24  # of the largest intermediate result


def mixture_entropy(
    means: Float[Tensor, "sample *shape"], std: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Entropy in nats of :math:`q(y) = \frac1S \sum_s \mathcal N(y; m_s, \sigma^2)`, per element.

    :math:`H = -\frac1S\sum_s \mathbb E_{\mathcal N(m_s, \sigma^2)} \log q(y)`, each expectation by
    16-point Gauss-Hermite quadrature; cost quadratic in the number of draws. The absolute error is
    below 1e-3 nats anywhere (the worst case found, a lattice of means 4 :math:`\sigma` apart, is
    5e-4), and far smaller where the components overlap more or less.

    Args:
        means: one mean per draw and element.
        std: one width per element.

    Returns:
        The entropy per element.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    z = torch.as_tensor(nodes, dtype=means.dtype, device=means.device)
    w = torch.as_tensor(weights / weights.sum(), dtype=means.dtype, device=means.device)
    samples = means.shape[0]
    # in units of the width, around the middle to keep digits
    u = ((means - means.mean(0)) / std).reshape(samples, -1)
    entropies = []
    for part in u.split(max(1, _ELEMENTS // (samples**2 * _NODES)), dim=1):
        y = part[:, None] + z[:, None]  # (component, node, element)
        # (other component, component, node, element)
        log_q = torch.logsumexp(-0.5 * (y - part[:, None, None]).square(), 0)
        entropies.append(-(w @ log_q.mean(0)))
    entropy = torch.cat(entropies).reshape(std.shape)
    return entropy + math.log(samples) + 0.5 * math.log(2 * math.pi) + std.log()
