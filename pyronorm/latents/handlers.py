"""What Pyro's handlers around a model do with a network's parameters."""

from __future__ import annotations

from collections.abc import Callable

import pyro
from pyro.params.param_store import user_param_name
from pyro.poutine.lift_messenger import LiftMessenger
from pyro.poutine.messenger import Messenger, block_messengers
from pyro.poutine.trace_messenger import TraceMessenger

from pyronorm.errors import OptionError
from pyronorm.latents.network import LatentNetwork

__all__ = ["refuse_another_network", "refuse_lifted", "runs_under", "states_parameters"]


def refuse_another_network(network: LatentNetwork) -> None:
    """Refuse SVI if ``pyro.module`` has found another network's parameters by these names."""
    with block_messengers(states_parameters) as tracers:
        if not tracers:
            return
    own = {id(parameter) for parameter in network.parameters()}
    store = pyro.get_param_store()
    for tracer in tracers:
        for name, site in tracer.trace.nodes.items():  # type: ignore[attr-defined]
            stated = site["args"][1:] if site["type"] == "param" else ()
            if stated and id(stated[0]) in own and store[name] is not stated[0]:
                raise OptionError(
                    f"Pyro's parameter store holds {name!r} of another network, so this one would not "
                    "be trained. Call pyro.clear_param_store() first, or give pyro.module another name."
                )


def refuse_lifted(network: LatentNetwork) -> None:
    """Refuse ``poutine.lift`` of the network's parameters: the values would not be used."""
    with block_messengers(lambda h: isinstance(h, LiftMessenger)) as lifts:
        names = [name for name, _ in network.named_parameters()] if lifts else []
    for lift in lifts:
        prior = lift.prior  # type: ignore[attr-defined]
        lifted = prior if isinstance(prior, dict) else names
        if any(user_param_name(key) in names for key in lifted):
            raise OptionError(
                "poutine.lift would sample the network's parameters, and the network would run "
                "without these values. Give layers a prior of their own before pyronorm.convert: "
                "PyroModule[nn.Linear](...), and a PyroSample for its weight."
            )


def states_parameters(handler: Messenger) -> bool:
    """Whether a handler looks for parameters, as SVI's does."""
    return isinstance(handler, TraceMessenger) and bool(handler.param_only)


def runs_under(is_wanted: Callable[[Messenger], bool]) -> bool:
    """Whether one of Pyro's handlers around this call is wanted."""
    with block_messengers(is_wanted) as found:
        return bool(found)
