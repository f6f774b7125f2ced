"""The space of latents of a network, and the network as a pure function of them."""

from pyronorm.latents.draws import Draws, HasLatents
from pyronorm.latents.network import LatentNetwork
from pyronorm.latents.per import Per
from pyronorm.latents.space import LatentLayer, LatentSpace

__all__ = ["Draws", "HasLatents", "LatentLayer", "LatentNetwork", "LatentSpace", "Per"]
