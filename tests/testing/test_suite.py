"""The suite passes what is right and names what is wrong."""

from __future__ import annotations

import re

import pytest
from torch import nn

from pyronorm.normalizers import Instance
from pyronorm.testing import NormalizerConformance, run_checks
from tests.testing import broken

NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class PlainSuite(NormalizerConformance):
    """Not named Test..., so that pytest leaves it to the tests below."""

    kind = broken.Plain

    def make(self, num_channels):
        return self.kind()

    def torch_layer(self, num_channels, dims):
        return NORMS[dims](num_channels)


def test_what_is_right_passes_every_check():
    results = run_checks(PlainSuite())
    assert len(results) == 20
    assert set(results.values()) == {"passed"}


FAILURES = [
    (
        broken.AveragesAcrossChannels,
        "channels_have_their_own_statistics",
        r"statistics are averaged across channels: channel 1 of a \(batch, channel, length\) input is "
        r"normalized differently when only channel 0 changes, in training mode.* instead of ",
    ),
    (
        broken.AveragesAcrossChannels,
        "equals_torch",
        r"not torch's layer, a \(batch, channel, length\) input, in training mode",
    ),
    (
        broken.Detached,
        "gradients",
        r"gradient with respect to linear1.weight is not that of the function, a \(batch, channel\) "
        r"input, in training mode: is something detached",
    ),
    (
        broken.WritesBuffer,
        "running_changes_nothing",
        r"a forward pass on .*, in training mode, wrote norm1.running_mean: .* must never change",
    ),
    (
        broken.LeavesAttribute,
        "running_changes_nothing",
        r"a forward pass on .* wrote norm1.last_shape: .* must never change it",
    ),
    (
        broken.IgnoresLatents,
        "latents_follow_the_definition",
        r"not weight \* scale \* \(x_hat \+ shift\) \+ bias with one draw, a \(batch, channel\) input",
    ),
    (
        broken.ScalesBias,
        "latents_follow_the_definition",
        r"the output is not weight \* x_hat \+ bias, .* affine=True",
    ),
    (
        broken.OneDrawForAll,
        "latents_follow_the_definition",
        r"with a draw for each example, a \(batch, channel\) input, in training mode",
    ),
    (
        broken.NotNeutral,
        "neutral_latents_are_no_latents",
        r"shift 0 and scale 1 of shape \(6,\) are not neutral",
    ),
    (
        broken.HalfStatistics,
        "autocast_keeps_statistics_in_float32",
        r"bfloat16 autocast is off by more than rounding, .*are statistics taken in bfloat16\?",
    ),
    (
        broken.OnlyFloat32,
        "precision_and_device_follow_the_network",
        r"double\(\) on a \(batch, channel\) input: torch.float32 instead of torch.float64",
    ),
    (
        broken.OnCpu,
        "precision_and_device_follow_the_network",
        r"does not run on torch's meta device, .*in training mode: RuntimeError: .* cpu .* meta",
    ),
    (
        broken.Unbiased,
        "batch_statistics_standardize_each_channel",
        r"x_hat has not variance 1 over all values of each channel, a \(batch, channel\) input, in "
        r"training mode: 0.87\d* instead of 1",
    ),
    (
        broken.ReportsUnbiased,
        "batch_statistics_standardize_each_channel",
        r"x_hat has not variance 1 .*, in evaluation mode: 0.87\d* instead of 1",
    ),
    (
        broken.ReportsUnbiased,
        "bank_row_reproduces_the_batch",
        r"the recorded batch statistics, as latents, do not give what the batch gave",
    ),
    (
        broken.ReportsNothing,
        "batch_statistics_standardize_each_channel",
        r"raised StatisticsError: norm1: the network never ran this layer",
    ),
    (
        broken.Undeclared,
        "examples_do_not_mix",
        r"make an example depend on its batch. Instead it raised ShapeError: norm1",
    ),
    (
        broken.UndeclaredPadded,
        "examples_do_not_mix",
        r"an example depends on the others of its batch, a \(batch, channel\) input, in training mode "
        r"\(statistics over the batch in training mode ask for uses_batch = True\)",
    ),
    (
        broken.TwoFunctions,
        "examples_do_not_mix",
        r"the two modes differ though uses_batch is False",
    ),
    (
        broken.HidesNonFinite,
        "non_finite_inputs_stay_visible",
        r"6 of 6 outputs are finite for an example that is all nan, a \(batch, channel\) input",
    ),
    (
        broken.ReportsFinite,
        "non_finite_inputs_stay_visible",
        r"infinite population statistics are accepted: raise a PyronormError",
    ),
    (
        broken.AcceptsOneValue,
        "single_values_are_refused_by_name",
        r"nothing is left of one value per channel \(an input of shape \(1, 5\)\), in training mode: "
        r"it has to be refused: raise a PyronormError that begins with layer.name",
    ),
    (
        broken.RefusesNamelessly,
        "single_values_are_refused_by_name",
        r"an error does not name its layer, 'norm1': one value per channel",
    ),
    (
        broken.Branches,
        "vmap_over_samples",
        r"Many draws at once give .* Instead it raised RuntimeError: vmap: .*control flow",
    ),
    (
        broken.Branches,
        "torch_compile",
        r"``torch.compile`` takes the network in one graph.* Instead it raised \w+: ",
    ),
    (broken.Flattens, "memory_format", r"raised RuntimeError: view size"),
    (
        broken.TakesChannelLast,
        "channel_last_layout",
        r"channels on the last axis.* Instead it raised RuntimeError: The size of tensor",
    ),
    (
        broken.KeepsTensor,
        "settings_are_a_frozen_dataclass",
        r"KeepsTensor.mean is a Tensor, .* declare a buffer in buffers\(\)",
    ),
    (broken.Mutable, "settings_are_a_frozen_dataclass", r"Mutable is no frozen dataclass"),
    (
        broken.KeptElsewhere,
        "state_dict_round_trip",
        r"a loaded state dict differs, a \(batch, channel\) input",
    ),
    (broken.KeptElsewhere, "copies_are_independent", r"copy.deepcopy gives another network"),
]


@pytest.mark.parametrize(
    ("kind", "name", "message"), FAILURES, ids=[f"{k.__name__}-{n}" for k, n, _ in FAILURES]
)
def test_what_is_wrong_fails_with_a_readable_message(kind, name, message):
    suite = PlainSuite()
    suite.kind = kind
    with pytest.raises(AssertionError) as caught:
        getattr(suite, f"test_{name}")()
    assert re.search(message, str(caught.value), re.DOTALL), caught.value


def test_a_normalizer_that_needs_positions_has_to_say_so():
    class InstanceSuite(NormalizerConformance):
        def make(self, num_channels):
            return Instance()

    with pytest.raises(AssertionError, match="ShapeError: norm1: .* at least 2 positions"):
        InstanceSuite().test_latents_follow_the_definition()
