"""How a network's outputs move with its latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyronorm.devices import check_memory
from pyronorm.errors import DataError, ShapeError
from pyronorm.inputs import all_finite, first_tensor, is_one_piece, num_examples
from pyronorm.latents import LatentNetwork

__all__ = ["latent_jacobian"]


def latent_jacobian(network: LatentNetwork, x: Any, z: Tensor, where: str) -> tuple[Tensor, Tensor]:
    r"""Outputs of a batch, and their derivatives in the latents.

    Each example has latents of its own, so that one backward pass gives a row for all of them: as
    many passes as there are outputs, where forward differentiation would take one for each latent.

    Args:
        network: the network, in evaluation mode.
        x: a batch of inputs, on the network's device.
        z: shifts and log scales, shape ``(2 * channel,)``.
        where: the caller, for messages.

    Returns:
        The network's output, ``(batch,)`` or ``(batch, out)``, and the Jacobian, ``(batch, out,
        2 * channel)``.

    Raises:
        DataError: if the inputs are one object (a batch of graphs), whose examples share latents, or
            are not finite.
        ShapeError: if the output has more axes.
        SizeError: if there is no memory for the Jacobian.
    """
    if is_one_piece(x):
        raise DataError(
            f"{where}: the inputs are one object, whose examples cannot have latents of their own. Use "
            "a variational guide, pyronorm.guides.MeanField, or NUTS."
        )
    if first_tensor(x).device.type == "cpu" and not bool(all_finite(x)):
        raise DataError(f"{where}: the data have inputs that are not finite.")
    number = num_examples(x)
    with torch.enable_grad():
        own = z.detach().expand(number, -1).clone().requires_grad_()
        shift, log_scale = own.chunk(2, -1)
        output: Tensor = network(x, shift, log_scale.exp())
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if output.ndim > 2:
            raise ShapeError(
                f"{where}: the network's output must have the shape (batch,) or (batch, out), got "
                f"{tuple(output.shape)}. For dense outputs use a variational guide, such as "
                "pyronorm.guides.MeanField or LowRank."
            )
        flat = output.reshape(number, -1)
        outputs = flat.shape[1]
        check_memory(
            f"{where}, derivatives of {outputs} outputs in {len(z):,} latents",
            number * outputs * len(z),
            own,
            "Take a smaller batch_size.",
        )
        rows = [
            torch.autograd.grad(flat[:, k].sum(), own, retain_graph=k + 1 < outputs)[0]
            for k in range(outputs)
        ]
    return output.detach(), torch.stack(rows, 1)
