"""The conformance suite on every normalizer of the library: a few lines for each."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from pyronorm.normalizers import (
    RMS,
    Analytic,
    Batch,
    BatchWhitening,
    Deviation,
    Exclusive,
    Ghost,
    Group,
    GroupWhitening,
    Instance,
    Layer,
    Original,
    Population,
    SyncBatch,
    Weight,
)
from pyronorm.testing import NormalizerConformance

BATCH = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class TestBatch(NormalizerConformance):
    def make(self, num_channels):
        return Batch()

    def torch_layer(self, num_channels, dims):
        return BATCH[dims](num_channels, eps=1e-2)


class TestSyncBatch(NormalizerConformance):
    def make(self, num_channels):
        return SyncBatch()

    def torch_layer(self, num_channels, dims):
        return BATCH[dims](num_channels, eps=1e-2)


class TestExclusive(NormalizerConformance):
    def make(self, num_channels):
        return Exclusive()


class TestPopulation(NormalizerConformance):
    def make(self, num_channels):
        return Population()

    def torch_layer(self, num_channels, dims):
        class Frozen(BATCH[dims]):
            def train(self, mode=True):
                return super().train(False)

        return Frozen(num_channels, eps=1e-2)


class TestGroup(NormalizerConformance):
    independent_channels: ClassVar[bool] = False

    def make(self, num_channels):
        return Group(2)

    def torch_layer(self, num_channels, dims):
        return nn.GroupNorm(2, num_channels, eps=1e-2)


class TestOriginal(NormalizerConformance):
    """A group normalization that goes on computing itself."""

    independent_channels: ClassVar[bool] = False

    def make(self, num_channels):
        return Original()

    def original_layer(self, num_channels, dims, eps, affine):
        return nn.GroupNorm(2, num_channels, eps, affine)

    def torch_layer(self, num_channels, dims):
        return nn.GroupNorm(2, num_channels, eps=1e-2)


class TestLayer(NormalizerConformance):
    independent_channels: ClassVar[bool] = False

    def make(self, num_channels):
        return Layer()

    def torch_layer(self, num_channels, dims):
        return nn.GroupNorm(1, num_channels, eps=1e-2)


class TestInstance(NormalizerConformance):
    spatial_dims: ClassVar[tuple[int, ...]] = (1, 2, 3)
    needs_positions: ClassVar[bool] = True

    def make(self, num_channels):
        return Instance()

    def torch_layer(self, num_channels, dims):
        return INSTANCE[dims - 1](num_channels, eps=1e-2, affine=dims > 1)


class TestWeight(NormalizerConformance):
    def make(self, num_channels):
        return Weight()


class TestRMS(NormalizerConformance):
    independent_channels: ClassVar[bool] = False

    def make(self, num_channels):
        return RMS()


class TestDeviation(NormalizerConformance):
    independent_channels: ClassVar[bool] = False

    def make(self, num_channels):
        return Deviation()


class TestGhost(NormalizerConformance):
    def make(self, num_channels):
        return Ghost(4)


class TestAnalytic(NormalizerConformance):
    def make(self, num_channels):
        return Analytic(input_mean=0.3, input_std=2.0)


class TestBatchWhitening(NormalizerConformance):
    independent_channels: ClassVar[bool] = False

    def make(self, num_channels):
        return BatchWhitening(2)


class TestGroupWhitening(NormalizerConformance):
    independent_channels: ClassVar[bool] = False

    def make(self, num_channels):
        return GroupWhitening(2)
