"""A Markov chain that is kept as it goes, and gone on with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pyro.infer import NUTS
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyronorm.archive import read_archive, write_archive
from pyronorm.errors import FileError, OptionError
from pyronorm.infer.generators import device_state, set_device_state

__all__ = ["KeptChain", "digest"]

_KIND = "chain"
_EVERY = 20
"""Draws between files."""

_NUMBERS = ("_t", "_accept_cnt", "_mean_accept_prob", "_divergences", "_kept")
"""What a kernel of Pyro counts, and RecordedNUTS beside it."""


class KeptChain(MCMCKernel):
    """A kernel around NUTS that keeps its draws, and makes none twice.

    Draws that were made before, in this process or one that was killed, are given again without
    computing. After the last of them kernel and generator go on from where they were, so that the chain
    is, on a CPU, bit by bit the one that nothing interrupted. What is kept begins with the end of the
    warm-up: a chain that is killed before starts anew.

    Args:
        kernel: the kernel, not used before.
        device: where it draws.
        path: file of the chain; None to keep it in memory alone.
        run: what decides the chain, ready for JSON; a file of another run is refused.

    Raises:
        OptionError: if the file is of another run.
        FileError: if it is damaged.
    """

    def __init__(
        self,
        kernel: NUTS,
        device: torch.device,
        path: Path | None = None,
        run: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self._device = device
        self.seen: Callable[[int, Mapping[str, Any]], None] | None = None
        """Told the number of the step, and what the sampler says of it, after each step."""
        self._path = path
        self._run = dict(run or {})
        self._warmup = 0
        self._step = 0
        self._draws: list[dict[str, Tensor]] = []
        self._state: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        if path is not None and path.exists():
            self._read(path)

    def __len__(self) -> int:
        """Number of draws that there are."""
        return len(self._draws)

    @property
    def initial_params(self) -> Any:
        """Where the chain starts."""
        return self.kernel.initial_params

    @initial_params.setter
    def initial_params(self, params: Any) -> None:
        self.kernel.initial_params = params

    @property
    def transforms(self) -> Any:
        """Of the sites, to where they are free."""
        return self.kernel.transforms

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Begin the chain, or begin to give again what there is of it."""
        self.kernel.setup(warmup_steps, *args, **kwargs)
        self._warmup, self._step = warmup_steps, 0

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """The next step: given again, or made."""
        step = self._step - self._warmup
        self._step += 1
        if self._state is not None and step < len(self._draws):
            if step == len(self._draws) - 1:
                self._restore()
            return self._draws[max(step, 0)] if self._draws else params
        new: dict[str, Tensor] = self.kernel.sample(params)
        if self.seen is not None:
            self.seen(self._step, self.kernel.logging())
        if step >= 0:
            self._draws.append({name: value.detach().clone() for name, value in new.items()})
        if step >= -1:
            self._state = self._now()
            if len(self._draws) % _EVERY == 0:
                self.write()
        return new

    def logging(self) -> Any:
        """What a progress bar shows."""
        return self.kernel.logging()

    def diagnostics(self) -> dict[str, Any]:
        """What Pyro says of the chain, which is whole now, and of each draw that it has."""
        self.write()
        number = self._step - self._warmup
        if number < len(self._draws):  # given again in part: the state was never restored
            self._restore_counts()
        said = dict(self.kernel.diagnostics())
        said["divergences"] = [step for step in said["divergences"] if step < number]
        kept = getattr(self.kernel, "_kept", {})
        return {**said, **{name: said[name][:number] for name in kept}}

    def cleanup(self) -> None:
        """End the chain; the draws stay."""
        self.kernel.cleanup()

    def write(self) -> None:
        """Write what there is to the file, if there is one.

        Raises:
            FileError: if it cannot be written.
        """
        if self._path is None or self._state is None:
            return
        numbers, tensors = self._state
        draws = {
            f"draws.{name}": torch.stack([draw[name] for draw in self._draws])
            for name in (self._draws[0] if self._draws else ())
        }
        content = {"run": self._run, "draws": len(self._draws), "kernel": numbers}
        write_archive(self._path, _KIND, content, {**tensors, **draws})

    def again(self) -> KeptChain:
        """The same chain, all of it to be given again, after an interruption."""
        self.kernel.cleanup()
        chain = KeptChain(self.kernel, self._device)
        chain._draws, chain._state = self._draws, self._state
        return chain

    def _now(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the next step depends on."""
        kernel = self.kernel
        z, potential, grads = kernel._fetch_from_cache()
        numbers = {name: _copy(getattr(kernel, name)) for name in _NUMBERS if hasattr(kernel, name)}
        numbers["step_size"] = float(kernel.step_size)
        masses = sorted(kernel.inverse_mass_matrix.items())
        tensors = {
            "generator": device_state(self._device),
            "potential": potential,
            **{f"z.{name}": value for name, value in z.items()},
            **{f"grad.{name}": value for name, value in grads.items()},
            **{f"mass.{position}": value for position, (_, value) in enumerate(masses)},
        }
        return numbers, {name: value.detach() for name, value in tensors.items()}

    def _restore(self) -> None:
        self._restore_counts()
        assert self._state is not None
        numbers, tensors = self._state
        kernel = self.kernel
        kernel._adapter.step_size = numbers["step_size"]
        like = next(iter(kernel.initial_params.values()))
        mine = {
            name: value if name == "generator" else value.to(like.device)
            for name, value in tensors.items()
        }
        kernel.mass_matrix_adapter.inverse_mass_matrix = {
            sites: mine[f"mass.{position}"]
            for position, sites in enumerate(sorted(kernel.inverse_mass_matrix))
        }
        z, grads = (
            {name: mine[f"{part}.{name}"] for name in kernel.initial_params}
            for part in ("z", "grad")
        )
        kernel._cache(z, mine["potential"], grads)
        set_device_state(self._device, tensors["generator"])

    def _restore_counts(self) -> None:
        assert self._state is not None
        numbers, _ = self._state
        for name in _NUMBERS:
            if name in numbers:
                setattr(self.kernel, name, _copy(numbers[name]))

    def _read(self, path: Path) -> None:
        try:
            content, tensors = read_archive(path, _KIND)
        except FileError as error:
            raise FileError(f"{error} Or delete it: the chain is then sampled anew.") from error
        there = content["run"]
        for name in [*self._run, *there]:
            if self._run.get(name) != there.get(name):
                raise OptionError(
                    f"run_nuts: {path} is a chain of another run: {name} is {there.get(name)!r} there "
                    f"and {self._run.get(name)!r} here. Go on with the arguments it was made with, or "
                    "take another folder."
                )
        prefix = "draws."
        sites = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        device = self._device
        self._draws = [
            {name: value[index].to(device) for name, value in sites.items()}
            for index in range(content["draws"])
        ]
        rest = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
        self._state = content["kernel"], rest


def digest(tensors: Iterable[Tensor]) -> str:
    """A number that stands for the values of tensors, their shapes and types, in 16 digits."""
    found = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{tuple(plain.shape)} {plain.dtype}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: list(part) for name, part in value.items()}
    return list(value) if isinstance(value, list) else value
