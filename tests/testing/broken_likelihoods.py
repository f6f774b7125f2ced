"""Likelihoods, each wrong in one way, that the suite has to name."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from pyronorm.likelihoods import Likelihood, per_example


class Right(Likelihood):
    """Laplace noise of a learned width."""

    def __init__(self):
        super().__init__()
        self.log_width = nn.Parameter(torch.tensor(-0.3))

    def distribution(self, output, num_sample_dims=0):
        noise = dist.Laplace(output, self.log_width.exp(), validate_args=False)
        return per_example(noise, num_sample_dims)


class ForgetsEvents(Right):
    def distribution(self, output, num_sample_dims=0):
        return dist.Laplace(output, self.log_width.exp(), validate_args=False)


class MixesExamples(Right):
    def distribution(self, output, num_sample_dims=0):
        centred = output - output.mean(num_sample_dims, keepdim=True)
        return super().distribution(centred, num_sample_dims)


class CountsAxesFromTheFront(Right):
    def distribution(self, output, num_sample_dims=0):
        return super().distribution(output - output.mean(1, keepdim=True), num_sample_dims)


class Detached(Right):
    def distribution(self, output, num_sample_dims=0):
        noise = dist.Laplace(output, self.log_width.exp().detach(), validate_args=False)
        return per_example(noise, num_sample_dims)


class _Narrow(dist.Laplace):
    """Its samples are not of its density."""

    def sample(self, sample_shape=()):
        return self.loc + self.scale + super().sample(sample_shape)


class SamplesSomethingElse(Right):
    def distribution(self, output, num_sample_dims=0):
        noise = _Narrow(output, self.log_width.exp(), validate_args=False)
        return per_example(noise, num_sample_dims)


class OtherMean(Right):
    def expected(self, output, num_sample_dims=0):
        return output.exp()


class TakesAnyShape(Right):
    def check_data(self, y, output, num_sample_dims=0, *, values=True):
        pass


class PoisonedByMissing(Right):
    def observe(self, output, y, num_sample_dims=0):
        return self.distribution(output, num_sample_dims), y


class AddsNoise(Right):
    def distribution(self, output, num_sample_dims=0):
        return super().distribution(output + 1e-12 * torch.randn(()), num_sample_dims)


class Counts(Right):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def distribution(self, output, num_sample_dims=0):
        self.calls += 1
        return super().distribution(output, num_sample_dims)


class HidesState(Right):
    """The width is no buffer, so it is not saved, and stays in float64."""

    def __init__(self):
        super().__init__()
        self.extra = torch.tensor([0.5], dtype=torch.float64)

    def distribution(self, output, num_sample_dims=0):
        width = self.log_width.exp() * self.extra
        return per_example(dist.Laplace(output, width, validate_args=False), num_sample_dims)
