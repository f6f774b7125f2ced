"""What a normalizer has to hold, as a class of checks to inherit."""

from __future__ import annotations

import copy
import io
import pickle
from itertools import product
from typing import Any

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyronorm.errors import PyronormError, StatisticsError
from pyronorm.guides import MeanField
from pyronorm.infer import collect_bank, estimate_population_statistics
from pyronorm.likelihoods import Categorical
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import trust_statistics
from pyronorm.testing.claims import (
    SkipTest,
    Snapshot,
    check,
    expect,
    follows_the_definition,
    has_gradients,
    is_value,
    names_the_layer,
    same,
    without_type_checks,
)
from pyronorm.testing.networks import (
    BATCH,
    CHANNELS,
    data,
    identity,
    latents,
    layout,
    modes,
    transformer_layer,
)
from pyronorm.testing.subject import Subject

__all__ = ["NormalizerConformance"]


class NormalizerConformance(Subject):
    """Checks that every :class:`~pyronorm.normalizers.Normalizer` passes; inherit it in a test class.

    .. code-block:: python

        class TestMine(NormalizerConformance):
            def make(self, num_channels):
                return Mine()

    Each check is a method ``test_...``. It raises an AssertionError that says what broke, or skips
    itself (``unittest.SkipTest``, which pytest knows too) where it does not apply. Networks are
    small, in float64 unless precision is the question; batches have 8 examples, or 1. What applies
    is read off the normalizer's ``uses_batch`` and the class variables.
    """

    # What the layer computes.

    @check
    def test_settings_are_a_frozen_dataclass(self) -> None:
        """The normalizer is a value: a frozen dataclass of settings, and no tensors."""
        kind, twin = self.make(CHANNELS), self.make(CHANNELS)
        is_value(kind, twin)
        (network, _, _), name = next(self._cases()), type(kind).__name__
        expect(name in repr(network.network), f"print(network) does not show {name}")

    @check
    def test_equals_torch(self) -> None:
        """Without latents the layer is torch's own, in training and in evaluation mode."""
        for dims in self.spatial_dims:
            theirs = self.torch_layer(CHANNELS, dims)
            if theirs is None:
                raise SkipTest(f"torch_layer gives none for {dims} spatial axes")
            affine = getattr(theirs, "weight", None) is not None
            source = self._original(dims, affine=affine, eps=getattr(theirs, "eps", 1e-5))
            x, network = data(dims), self._network(source, data(dims))
            ours = network.layers[0].state_dict()
            state = {key: ours[key] for key in theirs.state_dict()}
            reference = nn.Sequential(source.get_submodule("linear1"), theirs.double())
            for mode in modes(network):
                theirs.load_state_dict(state)  # torch's own layer changes when it runs
                expected = reference.train(network.training)(x)
                same(network(x), expected, f"not torch's layer, {layout(dims)}, {mode}")

    @check
    def test_channels_have_their_own_statistics(self) -> None:
        """What one channel sees does not change how another one is normalized."""
        if not self.independent_channels:
            raise SkipTest("independent_channels = False")
        for dims in self.spatial_dims:
            x, before = data(dims), self._original(dims)
            after = copy.deepcopy(before)
            linear: Any = after.get_submodule("linear1")
            with torch.no_grad():
                linear.weight[0] *= 30
                linear.bias[0] += 100
            a, b = (self._network(source, x + 0.5) for source in (before, after))
            for mode in modes(a):
                y, expected = b.train(a.training)(x), a(x)
                for channel in range(1, CHANNELS):
                    same(
                        y[:, channel],
                        expected[:, channel],
                        f"statistics are averaged across channels: channel {channel} of "
                        f"{layout(dims)} is normalized differently when only channel 0 changes, "
                        f"{mode}. Take them over every axis but axis 1 (or say "
                        "independent_channels = False, if channels are meant to share them)",
                    )

    @check
    def test_batch_statistics_standardize_each_channel(self) -> None:
        """Batch and population statistics are mean and biased variance of each channel."""
        if not self._one_pair_per_batch:
            raise SkipTest("no batch statistics of one channel alone")
        for network, x, case in self._cases(affine=False, eps=1e-9):
            estimate_population_statistics(network, [x])
            for layer in network.layers:
                layer.then = ()  # what follows is no normalization
            values = network(x).movedim(1, 0).flatten(1)
            mean, var = values.mean(1), values.var(1, correction=0)
            what = "over all values of each channel"
            same(mean, torch.zeros_like(mean), f"x_hat has not mean 0 {what}, {case}", 1e-6)
            same(var, torch.ones_like(var), f"x_hat has not variance 1 {what}, {case}", 1e-3)

    @check
    def test_examples_do_not_mix(self) -> None:
        """Only batch statistics, in training mode, make an example depend on its batch."""
        uses_batch = self._uses_batch
        for network, x, case in self._cases():
            if not (uses_batch and network.training):
                same(
                    network(x[3:4]),
                    network(x)[3:4],
                    f"an example depends on the others of its batch, {case} (statistics over the "
                    "batch in training mode ask for uses_batch = True)",
                )
            if not uses_batch:
                y = network(x)
                other = network.train(not network.training)(x)
                network.train(not network.training)
                same(y, other, f"the two modes differ though uses_batch is False, {case}")

    @check
    def test_neutral_latents_are_no_latents(self) -> None:
        """Shift 0 and scale 1 leave the network as it is."""
        for network, x, case in self._cases():
            for size in ((CHANNELS,), (BATCH, CHANNELS), (2, 1, CHANNELS)):
                y = network(x, x.new_zeros(size), x.new_ones(size))
                expected = network(x).expand_as(y)
                same(y, expected, f"shift 0 and scale 1 of shape {size} are not neutral, {case}")

    @check
    def test_latents_follow_the_definition(self) -> None:
        """``y = weight * scale * (x_hat + shift) + bias``, for one draw and for one per example."""
        for affine in (True, False):
            for network, x, case in self._cases(affine=affine):
                follows_the_definition(network, x, f"{case}, affine={affine}", after=self.after)

    @check
    def test_channel_last_layout(self) -> None:
        """The same with the channels on the last axis, as in transformers, and without a bias."""
        for bias in (True, False):
            source, x = transformer_layer(bias)
            try:
                network = self._network(source, x)
            except PyronormError as error:
                raise SkipTest(names_the_layer(error)) from error
            for mode in modes(network):
                case = f"a (batch, length, channel) input, {mode}, bias={bias}"
                follows_the_definition(network, x, case, channel_last=True)

    @check
    def test_bank_row_reproduces_the_batch(self) -> None:
        """The statistics of a batch, as latents in evaluation mode, are training mode on it."""
        if not self._one_pair_per_batch:
            raise SkipTest("no batch statistics of one channel alone")
        for dims in self.spatial_dims:
            x = data(dims)
            network = self._network(self._original(dims, deep=True), x)
            estimate_population_statistics(network, [x, data(dims)])
            try:
                bank = collect_bank(network, [x])
            except PyronormError as error:
                raise SkipTest(names_the_layer(error)) from error
            expected = network.train()(x)
            y = network.eval()(x, bank.shift[0], bank.scale[0])
            what = "the recorded batch statistics, as latents, do not give what the batch gave"
            same(y, expected, f"{what}, {layout(dims)}", 1e-6)

    # How it runs.

    @check
    def test_gradients(self) -> None:
        """Gradients with respect to input, weights and latents are those of the function."""
        for network, x, case in self._cases(deep=True):
            has_gradients(network, x, case)

    @check
    def test_vmap_over_samples(self) -> None:
        """Many draws at once give what one after the other gives."""
        for network, x, case in self._cases(deep=True):
            for examples in (1, BATCH):
                draws = latents(network, 4, examples)
                loop = torch.stack([network(x, *pair) for pair in zip(*draws, strict=True)])
                for together in (1, 3):
                    network.samples_per_call = together
                    message = f"{together} draws at once differ from one after the other"
                    same(network(x, *draws), loop, f"{message}, {case}")
                # By itself, since a network that vmap cannot run is run draw by draw.
                every = torch.func.vmap(network, (None, 0, 0), randomness="different")
                same(every(x, *draws), loop, f"torch.func.vmap over draws differs, {case}")

    @check
    def test_torch_compile(self) -> None:
        """``torch.compile`` takes the network in one graph, and changes nothing."""
        dims = self.spatial_dims[-1]
        x = data(dims)
        network = self._network(self._original(dims), x)
        with without_type_checks():
            for mode in modes(network):
                if not (network.training or self._uses_batch):
                    continue  # one function in both modes, compiled already
                torch.compiler.reset()
                compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
                draws = latents(network, 3, 1)
                message = f"torch.compile changes the result, {layout(dims)}, {mode}"
                same(compiled(x, *draws), network(x, *draws), message)

    @check
    def test_autocast_keeps_statistics_in_float32(self) -> None:
        """Under bfloat16 autocast inputs and outputs are rounded, statistics are not."""
        dims = self.spatial_dims[-1]
        x = data(dims, channels=CHANNELS).bfloat16().float()
        network = self._network(identity(dims, self.original_layer).float(), x)
        # Far from 0, statistics in bfloat16 are visibly off. A normalizer that owns the linear layer
        # works with its rounded weights, which are off there whatever the statistics.
        if not network.layers[0].normalizer.owns_linear:
            x = (x + 100).bfloat16().float()
            network = self._network(identity(dims, self.original_layer).float(), x)
        for mode in modes(network):
            for size, bits in (((), 6), ((BATCH,), 4)):
                draws = latents(network, *size)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    y = network(x, *draws)
                message = f"bfloat16 autocast is off by more than rounding, {layout(dims)}, {mode}"
                message += ": are statistics taken in bfloat16?"
                same(y.float(), network(x, *draws), message, 2.0**-bits)

    @check
    def test_precision_and_device_follow_the_network(self) -> None:
        """``.double()``, ``.bfloat16()`` and ``.to(device)`` move all that the layer needs."""
        for dims in self.spatial_dims:
            x = data(dims).float()
            network = self._network(self._original(dims).float(), x)
            expected = network(x).double()
            same(network.double()(x.double()), expected, f"double() on {layout(dims)}", 1e-2)
            for mode in modes(network):
                moved, there = copy.deepcopy(network.network).to("meta"), x.double().to("meta")
                try:
                    moved(there)
                except Exception as error:
                    case = f"{layout(dims)}, {mode}: {type(error).__name__}: {error}"
                    message = (
                        "does not run on torch's meta device, which stands for any other device"
                    )
                    raise AssertionError(f"{message}, {case}") from error
            network.bfloat16()
            trust_statistics(network)
            for mode in modes(network):
                try:
                    y = network(x.bfloat16(), *latents(network))
                except PyronormError as error:
                    names_the_layer(error)  # what half precision cannot hold may be refused
                    continue
                case = f"in a bfloat16 network, {layout(dims)}, {mode}"
                expect(y.dtype == torch.bfloat16, f"the output is {y.dtype} {case}")
                expect(bool(y.isfinite().all()), f"the output is not finite {case}")

    @check
    def test_memory_format(self) -> None:
        """Channels-last memory gives the same."""
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        if not set(formats) & set(self.spatial_dims):
            raise SkipTest("two or three spatial axes have this format")
        for network, x, case in self._cases():
            if x.ndim - 2 in formats:
                last = x.to(memory_format=formats[x.ndim - 2])
                for size in ((), (BATCH,)):
                    draws = latents(network, *size)
                    message = f"channels-last memory changes the result, {case}"
                    same(network(last, *draws), network(x, *draws), message)

    @check
    def test_running_changes_nothing(self) -> None:
        """No forward pass, and no step of inference, writes a buffer or an attribute."""
        for network, x, case in self._cases(deep=True):
            before = Snapshot(network.network)
            first = network(x)
            before.expect_unchanged(f"a forward pass on {case},")
            expect(torch.equal(first, network(x)), f"a second run gives another result, {case}")
            network(x, *latents(network, 3, BATCH))
            before.expect_unchanged(f"a forward pass with latents, on {case},")
            network.requires_grad_(False)
            before = Snapshot(network.network)
            model = NormalizationModel(network, Categorical(), 10 * BATCH)
            model.train(network.training)
            optimizer = PyroOptim(torch.optim.SGD, {"lr": 0.1})
            svi = SVI(model, MeanField(model), optimizer, Trace_ELBO())
            svi.step(x, torch.zeros(len(x), dtype=torch.long))
            before.expect_unchanged(f"an SVI step on {case},")

    @check
    def test_state_dict_round_trip(self) -> None:
        """A saved state makes another conversion of the same architecture the same network."""
        for network, x, case in self._cases(deep=True):
            file = io.BytesIO()
            torch.save(network.state_dict(), file)
            other = data(x.ndim - 2) * 3 + 1
            fresh = self._network(self._original(x.ndim - 2, deep=True), other).train(
                network.training
            )
            file.seek(0)
            fresh.load_state_dict(torch.load(file))
            draws = latents(network)
            same(fresh(x, *draws), network(x, *draws), f"a loaded state dict differs, {case}")

    @check
    def test_copies_are_independent(self) -> None:
        """``copy.deepcopy`` and pickle give the same network, which shares nothing with it."""
        for network, x, case in self._cases(deep=True):
            draws = latents(network)
            expected = network(x, *draws)
            for how, other in (
                ("copy.deepcopy", copy.deepcopy(network)),
                ("pickle", pickle.loads(pickle.dumps(network))),
            ):
                same(other(x, *draws), expected, f"{how} gives another network, {case}")
                places = {tensor.data_ptr() for tensor in network.state_dict().values()}
                for name, tensor in other.state_dict().items():
                    shared = tensor.numel() > 0 and tensor.data_ptr() in places
                    expect(not shared, f"{how} shares {name} with the original, {case}")

    # What it refuses.

    @check
    def test_single_values_are_refused_by_name(self) -> None:
        """One value per channel: an error with the layer's name, or a result that depends on it."""
        for dims in {0, *self.spatial_dims} if self.needs_positions else self.spatial_dims:
            for batch, training in product((1, BATCH), (True, False)):
                inputs = [data(dims, batch, single=True) for _ in range(2)]
                mode = "in training mode" if training else "in evaluation mode"
                case = f"one value per channel{'' if batch == 1 else ' and example'} (an input of "
                case += f"shape {tuple(inputs[0].shape)}), {mode}"
                outputs: list[Tensor] = []
                error: PyronormError | None = None
                try:
                    network = self._network(self._original(dims), data(dims)).train(training)
                    outputs = [network(x) for x in inputs]
                except PyronormError as refusal:
                    error = refusal
                if self.needs_positions or (self._uses_batch and training and batch == 1):
                    names_the_layer(error, f"nothing is left of {case}: it has to be refused")
                else:
                    expect(error is None, f"{case}, is refused: {error}")
                    depends = not torch.equal(outputs[0], outputs[1])
                    expect(depends, f"nothing is left of {case}, and it is not refused")

    @check
    def test_non_finite_inputs_stay_visible(self) -> None:
        """NaN and infinity come out as such, or are refused by the layer's name."""
        for network, x, case in self._cases():
            for bad in (torch.nan, torch.inf):
                x = x.clone()
                x[0] = bad
                for size in ((), (BATCH,)):
                    try:
                        y = network(x, *latents(network, *size))
                    except PyronormError as error:
                        names_the_layer(error)
                        continue
                    finite = int(y[0].isfinite().sum())
                    message = f"{finite} of {y[0].numel()} outputs are finite for an example that"
                    expect(finite == 0, f"{message} is all {bad}, {case}")
                if self._uses_batch:
                    statistics: PyronormError | None = None
                    x[0] = 1e300  # finite, unlike its square
                    try:
                        estimate_population_statistics(network, [x])
                    except StatisticsError as error:
                        statistics = error
                    names_the_layer(statistics, "infinite population statistics are accepted")
