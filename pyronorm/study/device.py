"""Where a study trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyronorm.errors import OptionError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["make_fabric"]


def make_fabric(device: str = "auto", precision: Any = "32-true") -> Fabric:
    """Lightning's Fabric for one device.

    Args:
        device: Fabric's accelerator: "auto", "cpu", "cuda", "mps".
        precision: Fabric's precision: "32-true", "bf16-mixed", "64-true", ...

    Raises:
        OptionError: if there is no such device or precision here.
    """
    from lightning_fabric import Fabric

    try:
        return Fabric(accelerator=device, devices=1, precision=precision)
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"device={device!r} with precision={precision!r}: {error}") from error
