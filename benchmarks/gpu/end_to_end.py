"""The library as users call it: the model on the device, data and draws wherever they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

import pyronorm as pn
from benchmarks.gpu.judging import judged, relative
from benchmarks.gpu.run import Part, Settings
from benchmarks.gpu.steps import make_fabric, mixed

_BATCH = 16
_DRAWS = 4


def run(part: Part, base: nn.Module, x: Tensor, y: Tensor) -> None:
    """All cases: those with an oracle, and those that have to run and give finite numbers."""
    calls = _Calls(part.settings, base, x, y)
    for name, body in {
        "collect_bank": calls.bank,
        "estimate_population_statistics": calls.population,
        "predict, draws on the CPU": calls.predict,
        "evaluate, data and draws on the CPU": calls.evaluate,
        "predict under bfloat16": calls.predict_half,
        "predict, bank from the CPU": calls.bank_from_cpu,
        "fit, float32": partial(calls.fit, pn.guides.MeanField),
        "fit, bfloat16": partial(calls.fit, pn.guides.LowRank, precision="bf16-mixed"),
        "fit, validation": partial(calls.fit, pn.guides.MeanField, validate=True),
        "fit, AutoNormal": partial(calls.fit, _auto_normal, normalizer=pn.normalizers.Group(4)),
        "pyro.infer.SVI": calls.svi,
        "run_nuts": calls.nuts,
        "to_arviz, guide": partial(calls.arviz, pn.guides.MeanField),
        "to_arviz, bank": partial(calls.arviz, lambda m: pn.collect_bank(m, x, 30, _BATCH)),
        "convert, example on the CPU": calls.convert,
    }.items():
        part.case(name, body, needs=10)


class _Calls:
    def __init__(self, settings: Settings, base: nn.Module, x: Tensor, y: Tensor) -> None:
        self.device = settings.device
        self.base, self.x, self.y = base, x, y
        self.batches = list(x.split(_BATCH))

    def model(
        self, normalizer: pn.normalizers.Normalizer | None = None, *, exact: bool = False
    ) -> pn.NormalizationModel:
        """On the device in float32, or on the CPU in float64."""
        network = pn.convert(self.base, normalizer, example_input=self.x)
        model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), len(self.x))
        model = model.double() if exact else model.to(self.device)
        pn.trust_statistics(model.network.network)
        return model

    def both(self) -> tuple[pn.NormalizationModel, pn.NormalizationModel]:
        return self.model(), self.model(exact=True)

    def draws(self, model: pn.NormalizationModel) -> pn.latents.Draws:
        generator = torch.Generator().manual_seed(2)
        shape = _DRAWS, model.space.num_channels
        shift, log_scale = (0.1 * torch.randn(shape, generator=generator) for _ in range(2))
        return pn.latents.Draws(shift, log_scale.exp())

    def bank(self) -> dict[str, Any]:
        model, exact = self.both()
        found = pn.collect_bank(model, self.batches)
        expected = pn.collect_bank(exact, [x.double() for x in self.batches])
        errors = {
            "mean": relative(found.mean, expected.mean),
            "variance": relative(found.var, expected.var),
        }
        return judged(errors)

    def population(self) -> dict[str, Any]:
        model, exact = self.both()
        pn.estimate_population_statistics(model, self.batches)
        pn.estimate_population_statistics(exact, [x.double() for x in self.batches])
        pairs = zip(model.network.buffers(), exact.network.buffers(), strict=True)
        return judged({"buffers": max(relative(a, b) for a, b in pairs)})

    def predict(self) -> dict[str, Any]:
        model, exact = self.both()
        draws = self.draws(model)
        found = pn.predict(model, draws, self.x, _DRAWS)
        expected = pn.predict(exact, draws, self.x.double(), _DRAWS)
        self.require_device(found.mean)
        errors = {
            "mean": relative(found.mean, expected.mean),
            "entropy": relative(found.entropy, expected.entropy),
        }
        return judged(errors)

    def evaluate(self) -> dict[str, Any]:
        model, exact = self.both()
        draws = self.draws(model)
        found = pn.evaluate(model, draws, (self.x, self.y), _DRAWS)
        expected = pn.evaluate(exact, draws, (self.x.double(), self.y), _DRAWS)
        return judged({"nll": abs(found["nll"] - expected["nll"]) / expected["nll"]})

    def predict_half(self) -> dict[str, Any]:
        model, exact = self.both()
        draws = self.draws(model)
        with mixed(self.device):
            found = pn.predict(model, draws, self.x, _DRAWS)
        expected = pn.predict(exact, draws, self.x.double(), _DRAWS)
        return judged({"bfloat16 output": relative(found.mean, expected.mean)})

    def bank_from_cpu(self) -> dict[str, Any]:
        on_cpu = self.model().to("cpu")
        pn.trust_statistics(on_cpu.network.network)
        bank = pn.collect_bank(on_cpu, self.x, 8, _BATCH)
        return finite(pn.predict(self.model(), bank, self.x, _DRAWS).mean)

    def fit(
        self,
        make: Callable[[pn.NormalizationModel], nn.Module],
        normalizer: pn.normalizers.Normalizer | None = None,
        *,
        precision: str = "32-true",
        validate: bool = False,
    ) -> dict[str, Any]:
        model = self.model(normalizer)
        history = pn.fit(
            model,
            make(model),
            (self.x, self.y),
            epochs=2,
            batch_size=_BATCH,
            validation=pn.Validation((self.x, self.y)) if validate else None,
            fabric=make_fabric(self.device, precision),
            progress=False,
            seed=0,
        )
        self.require_device(next(model.parameters()))
        return finite(torch.tensor(history.losses)) | {"loss": history.losses[-1]}

    def svi(self) -> dict[str, Any]:
        pyro.clear_param_store()
        model = self.model().train()
        elbo = pyro.infer.TraceMeanField_ELBO()
        engine = pyro.infer.SVI(
            model, pn.guides.MeanField(model), pyro.optim.Adam({"lr": 1e-3}), elbo
        )
        loss = engine.step(self.x.to(self.device), self.y.to(self.device))
        pyro.clear_param_store()
        return finite(torch.tensor(loss)) | {"loss": loss}

    def nuts(self) -> dict[str, Any]:
        chains = pn.run_nuts(
            self.model(pn.normalizers.Group(4)),
            (self.x, self.y),
            num_samples=6,
            warmup=6,
            max_tree_depth=3,
            seed=0,
            progress=False,
        )
        return finite(chains.shift)

    def arviz(self, make: Callable[[pn.NormalizationModel], Any]) -> dict[str, Any]:
        model = self.model()
        found = pn.to_arviz(model, make(model), (self.x, self.y), num_samples=30, seed=0)
        shift = torch.as_tensor(found["posterior"]["shift"].to_numpy())
        return finite(shift)

    def convert(self) -> dict[str, Any]:
        normalizer = pn.normalizers.Weight()
        base = copy.deepcopy(self.base).to(self.device)
        network = pn.convert(base, normalizer, example_input=self.x)
        with torch.no_grad():
            return finite(network(self.x.to(self.device)))

    def require_device(self, value: Tensor) -> None:
        if value.device.type != self.device.type:
            raise RuntimeError(f"the result is on {value.device}, the model on {self.device}")


def _auto_normal(model: pn.NormalizationModel) -> nn.Module:
    from pyro.infer.autoguide import AutoNormal

    return AutoNormal(model, init_loc_fn=pn.init_to_neutral)


def finite(value: Tensor) -> dict[str, Any]:
    """Whether there are values, all of them finite."""
    return {"right": bool(value.numel()) and bool(value.isfinite().all())}
