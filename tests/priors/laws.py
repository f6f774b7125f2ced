"""The distributions of a prior for a space of so many channels."""

from pyronorm.latents import LatentLayer, LatentSpace


def space(num_channels, prefix=""):
    """One layer with so many channels."""
    return LatentSpace((LatentLayer("norm", num_channels, "Batch"),), prefix)


def pair(prior, num_channels, like):
    """The distributions of shift and scale of an independent prior."""
    law = prior.law(space(num_channels), like)
    return law.shift, law.scale
