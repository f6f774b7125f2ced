"""The space of latents of a network, and the network as a pure function of them."""

from pyronorm.latents.network import LatentNetwork
from pyronorm.latents.per import Per
from pyronorm.latents.space import LatentLayer, LatentSpace

__all__ = ["LatentLayer", "LatentNetwork", "LatentSpace", "Per"]
