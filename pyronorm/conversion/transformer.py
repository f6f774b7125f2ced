"""Keep torch's fused transformer layers from going around the latents."""

from __future__ import annotations

from torch import nn

from pyronorm.normalizers.base import LatentNorm

__all__ = ["keep_latents_in_transformers"]


def keep_latents_in_transformers(network: nn.Module) -> None:
    """Switch off the fast path of transformer encoder layers that hold a latent layer.

    In evaluation mode without gradients ``torch.nn.TransformerEncoderLayer`` hands the weights of
    all its parts to one fused kernel, and ``norm1.forward`` is never called: latents would be
    ignored without a word. The stack around it (``torch.nn.TransformerEncoder``) may also make
    nested tensors for that kernel, which nothing else takes.

    Each layer keeps a note of whether its activation function suits the fused kernel; saying no is
    the way to switch it off that is used for nothing else and that holds in a copy, in a pickle and
    under torch.compile.

    Args:
        network: a converted network; changed in place.
    """
    for module in network.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)) and any(
            isinstance(part, LatentNorm) for part in module.modules()
        ):
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0
            else:
                module.use_nested_tensor = False
