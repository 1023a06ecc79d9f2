"""A training loop without a library, and what a step of ours takes beside it."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coa_compress.profiling.timing import quotients
from coa_compress.training.averaging import decay_at
from coa_compress.training.loop import TrainingJob, fit
from coa_compress.training.schedule import learning_rate_at
from coa_compress.training.settings import TrainingSettings

WARMUP = 5
"""Steps of each loop that are not counted, besides the first, which is not timed."""
LOOP_BAR = 1.03
"""A step of ``fit`` should take no more than this, by one of the bare loop."""
_SEED = 0
_BATCHES = 4


class BareLoop:
    """What a person would write without a library: AdamW, clipping, a schedule, an average.

    Args:
        model: The network; a copy of it is trained.
        batches: An input and a target for each step, used in turns.
        settings: Those that ``fit`` is given.
        device: Where to train.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[tuple[Tensor, Tensor]],
        settings: TrainingSettings,
        device: torch.device,
    ) -> None:
        layout = torch.channels_last
        self.batches, self.settings = batches, settings
        self.model = copy.deepcopy(model).to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(requires_grad=False)
        parameters = list(self.model.parameters())
        decayed = [p for p in parameters if p.dim() > 1]
        plain = [p for p in parameters if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ]
        )
        self.n_done = 0

    def step(self) -> float:
        """Take one step; return its loss."""
        self.model.train()
        given, wanted = self.batches[self.n_done % len(self.batches)]
        self.optimizer.zero_grad()
        loss = nn.functional.l1_loss(self.model(given), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.n_done, self.settings)
        self.optimizer.step()
        self._average()
        self.n_done += 1
        return loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        decay = decay_at(self.n_done, self.settings.ema_decay)
        for slow, fast in zip(self._tensors(self.averaged), self._tensors(self.model), strict=True):
            if slow.is_floating_point():
                slow.lerp_(fast, 1.0 - decay)
            else:
                slow.copy_(fast)

    def _tensors(self, model: nn.Module) -> list[Tensor]:
        return [*model.parameters(), *model.buffers()]


@dataclass(slots=True)
class _Turns:
    """Times of the two loops, one step of each in turns."""

    bare: BareLoop
    device: torch.device
    fit_ms: list[float] = field(default_factory=list)
    bare_ms: list[float] = field(default_factory=list)
    since: float = 0.0

    def after_step(self, _done: int, _total: int, _values: Mapping[str, float]) -> None:
        """Note the step of ``fit`` that ends here, take a bare one, and let the next begin."""
        _wait(self.device)
        middle = time.perf_counter()
        self.bare.step()
        _wait(self.device)
        end = time.perf_counter()
        if self.since:
            self.fit_ms.append(1000.0 * (middle - self.since))
            self.bare_ms.append(1000.0 * (end - middle))
        self.since = time.perf_counter()


def loop_row(
    name: str, model: nn.Module, *, crop: int, batch: int, settings: TrainingSettings, device: str
) -> dict[str, Any]:
    """Return what a step of ``fit`` takes, by a step of the bare loop beside it.

    Neither validates nor writes checkpoints; both compute in float32, on batches that are there.

    Args:
        name: Of the network.
        model: The network; unchanged.
        crop: Side of the crops in pixels.
        batch: Crops in one batch.
        settings: Of the training; of its steps, one and ``WARMUP`` more are not counted.
        device: Where to train.
    """
    place = torch.device(device)
    generator = torch.Generator().manual_seed(_SEED)
    shape = (batch, 3, crop, crop)
    images = [torch.rand(shape, generator=generator).to(place) for _ in range(2 * _BATCHES)]
    batches = list(zip(images[::2], images[1::2], strict=True))
    turns = _Turns(BareLoop(model, batches, settings, place), place)

    def losses(net: nn.Module, _average: nn.Module, _gen: torch.Generator) -> dict[str, Tensor]:
        given, wanted = batches[turns.bare.n_done % len(batches)]
        return {"l1": nn.functional.l1_loss(net(given), wanted)}

    job = TrainingJob(name="speed", model=model, step_losses=losses, weights={"l1": 1.0})
    result = fit(job, settings, seed=_SEED, device=device, folder=None, progress=turns.after_step)
    fit_ms, bare_ms = turns.fit_ms[WARMUP:], turns.bare_ms[WARMUP:]
    p10, median, p90 = quotients(fit_ms, bare_ms)
    return {
        "network": name,
        "crop": crop,
        "batch": batch,
        "steps": len(fit_ms),
        "quotient": median,
        "quotient_p10": p10,
        "quotient_p90": p90,
        "fit_ms": float(np.median(fit_ms)),
        "bare_ms": float(np.median(bare_ms)),
        "weights_differ_by": _difference(result.model, turns.bare.averaged),
    }


def _difference(first: nn.Module, second: nn.Module) -> float:
    """Return the largest difference of two networks' tensors."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((a.cpu().double() - b.cpu().double()).abs().max()) for a, b in pairs)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
