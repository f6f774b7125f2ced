"""A linear-Gaussian model with one normalization layer of one channel, and its exact posterior.

The network is y = weight * scale * (x_hat + shift) + bias, the noise is Gaussian: given scale the
posterior of shift is normal, and over (shift, log scale) the ELBO of any guide is an integral in the
plane.
"""

from __future__ import annotations

import math

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from pyronorm import NormalizationModel, convert
from pyronorm.guides import Guide
from pyronorm.likelihoods import Normal
from pyronorm.normalizers import Population
from pyronorm.priors import Prior
from tests.priors.laws import pair


class Conjugate:
    """The model, its data and integrals over its latents.

    Inputs off the reference mean, by ``offset`` standard deviations, make the posterior of shift and
    log scale correlated.
    """

    def __init__(
        self, prior: Prior, num_data: int = 20, std: float = 1.5, offset: float = 0.0
    ) -> None:
        norm = nn.BatchNorm1d(1)
        with torch.no_grad():
            norm.weight.fill_(1.3)
            norm.bias.fill_(0.4)
            norm.running_mean.fill_(0.5)
            norm.running_var.fill_(2.0)
            norm.num_batches_tracked.fill_(1)
        network = convert(nn.Sequential(norm), Population()).double()
        self.model = NormalizationModel(network, Normal(std), num_data, prior).double()
        self.model.requires_grad_(False).eval()
        self.x = 0.5 + 2**0.5 * (offset + torch.randn(num_data, 1, dtype=torch.float64))
        self.y = 1.2 * self.x + std * torch.randn(num_data, 1, dtype=torch.float64)
        shift = torch.linspace(-3, 3, 401, dtype=torch.float64)
        log_scale = torch.linspace(-3, 3, 401, dtype=torch.float64)
        self.area = ((shift[1] - shift[0]) * (log_scale[1] - log_scale[0])).item()
        self.shift, self.log_scale = torch.meshgrid(shift, log_scale, indexing="ij")
        self.log_joint = self._log_joint()

    def _log_joint(self) -> Tensor:
        """log p(y, shift, log scale) on the grid."""
        x_hat = (self.x[:, 0] - 0.5) / (2.0 + 1e-5) ** 0.5
        # The sum of squares is quadratic in a = weight * scale and b = a * shift + bias.
        a = 1.3 * self.log_scale.exp()
        b = a * self.shift + 0.4
        y, n = self.y[:, 0], len(self.y)
        squares = (
            y @ y
            + a.square() * (x_hat @ x_hat)
            + n * b.square()
            - 2 * a * (x_hat @ y)
            - 2 * b * y.sum()
            + 2 * a * b * x_hat.sum()
        )
        std = self.model.likelihood.std.item()
        log_p = -squares / (2 * std**2) - n * math.log(std * math.sqrt(2 * math.pi))
        prior = pair(self.model.prior, 1, self.x[:0, 0])
        log_p = log_p + prior[0].log_prob(self.shift[..., None])
        return log_p + prior[1].log_prob(self.log_scale.exp()[..., None]) + self.log_scale

    def log_density(self, guide: Guide) -> Tensor:
        """Log density of a guide's shift and log scale on the grid."""
        values = {
            "shift": self.shift[..., None, None],
            "scale": self.log_scale.exp()[..., None, None],
        }
        with torch.no_grad(), pyro.plate_stack("grid", (*self.shift.shape, 1)):
            trace = poutine.trace(poutine.condition(guide, values)).get_trace()
            trace.compute_log_prob()
        log_q = trace.nodes["shift"]["log_prob"] + trace.nodes["scale"]["log_prob"]
        return log_q[..., 0] + self.log_scale

    def elbo(self, guide: Guide) -> float:
        """The ELBO by integration: log evidence minus KL to the exact posterior."""
        log_q = self.log_density(guide)
        q = log_q.exp()
        return float(torch.where(q > 0, q * (self.log_joint - log_q), 0.0).sum()) * self.area

    def posterior(self) -> Tensor:
        """The exact posterior's weight of each point of the grid; they sum to 1."""
        return (self.log_joint - self.log_joint.logsumexp((0, 1))).exp()

    def train(self, guide: Guide, elbo: ELBO, steps: int = 400, lr: float = 0.05) -> None:
        """Maximize an ELBO by Adam with a falling rate, and average the last quarter."""
        parameters = list(guide.parameters())
        optimizer = torch.optim.Adam(parameters, lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, steps)
        means = [torch.zeros_like(p) for p in parameters]
        last = steps // 4
        for step in range(steps):
            optimizer.zero_grad()
            elbo.differentiable_loss(self.model, guide, self.x, self.y).backward()
            optimizer.step()
            schedule.step()
            if step >= steps - last:
                for mean, parameter in zip(means, parameters, strict=True):
                    mean += parameter.detach() / last
        with torch.no_grad():
            for mean, parameter in zip(means, parameters, strict=True):
                parameter.copy_(mean)
