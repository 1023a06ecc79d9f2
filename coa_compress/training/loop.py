"""The one training loop: every stage that learns goes through ``fit``."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from coa_compress.artifacts import History
from coa_compress.copying import copied, placed
from coa_compress.errors import (
    FOREIGN_ERRORS,
    CoaError,
    CoaWarning,
    TrainingError,
    first_line,
    is_out_of_memory,
)
from coa_compress.protocols import Progress, no_progress
from coa_compress.training.averaging import decay_at, tensors_of, update_average_
from coa_compress.training.engine import Engine, parse_device
from coa_compress.training.norms import other_buffers, shared_norms
from coa_compress.training.objective import check_names, check_weights, values_of, weighted_total
from coa_compress.training.processes import ALONE, Processes
from coa_compress.training.schedule import learning_rate_at
from coa_compress.training.seeds import repeatable, seed_global_, seed_of, step_seed
from coa_compress.training.settings import Precision, TrainingSettings
from coa_compress.training.state import CHECKPOINT_NAME, LoopState, digest_job, fill_, packed

StepLosses = Callable[[nn.Module, nn.Module, torch.Generator], Mapping[str, Tensor]]
"""Named, unweighted scalar losses of one micro-step.

It is given the network in training mode, its moving average in evaluation mode, and a CPU
generator that is seeded for exactly this job, seed, step and micro-step; it must draw random
numbers from nothing else, and return the same names every time. Where several processes train,
each is given the same generator, and works on ``Processes.share`` of what it draws.
"""

AfterStep = Callable[[nn.Module, int], None]
"""Given the network and the optimizer steps done, after each of them."""

_VIEW_FAILED = "view size is not compatible"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingJob:
    """What to train, and on what losses.

    Args:
        name: Used in messages and in seeding.
        model: The network; a copy of it is trained, this one is unchanged.
        step_losses: Named, unweighted losses of one micro-step.
        weights: Weight of each named loss. A loss without a weight is only logged; a weight,
            even 0, of a loss that does not exist is an error.
        validate: One figure of the averaged network, higher is better; decides which weights
            are returned. None returns the last ones.
        trainable_extras: Modules that ``step_losses`` uses and that are trained along, such as
            adapters between features; as they were, and where they were, when training ends.
            A module in it whose parameters need no gradient is only kept in the checkpoint.
        after_step: Called after each optimizer step; what it changes must be in
            ``trainable_extras``, and depend on nothing but that, the network and the step.
    """

    name: str
    model: nn.Module
    step_losses: StepLosses
    weights: Mapping[str, float]
    validate: Callable[[nn.Module], float] | None = None
    trainable_extras: nn.Module | None = None
    after_step: AfterStep | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingResult:
    """A trained network and how it came about.

    Args:
        model: The averaged weights of the best step, in evaluation mode, on the device of
            ``TrainingJob.model``.
        history: Losses and validations.
        best_step: Steps done when those weights were reached.
        best_value: Their validation, or None where there is none.
    """

    model: nn.Module
    history: History
    best_step: int
    best_value: float | None


def fit(  # noqa: PLR0913 - a seventh says with whom
    job: TrainingJob,
    settings: TrainingSettings,
    *,
    seed: int,
    device: str,
    folder: Path | None,
    progress: Progress = no_progress,
    processes: Processes = ALONE,
) -> TrainingResult:
    """Train a copy of a network; the same seed gives the same bits, also after an interruption.

    Several processes that call it together, each on its share of the batch, reach what one process
    with the whole batch does, up to rounding: for losses that are means over the examples, and
    networks without dropout.

    Args:
        job: What to train.
        settings: How long and how fast.
        seed: Start of every random number; bits also depend on the machine and its threads.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``step_losses`` must put its batches there.
        folder: Where checkpoints are kept and looked for, or None for none. Delete it once the
            result is safe.
        progress: Called after each step with the total, the learning rate and each loss. What it
            raises stops the training; the next call goes on from the last checkpoint.
        processes: Those that train together; each is given the result.

    Returns:
        The averaged network, best on validation.

    Raises:
        TrainingError: If training diverges, a weighted loss is missing or carries no gradient,
            the network cannot run in the bf16 that was asked for, or the folder holds a
            checkpoint of another job.
        WeightsError: If the checkpoint is damaged.

    Warns:
        CoaWarning: If the network cannot run in the bf16 that ``auto`` chose, and is trained in
            fp32.
    """
    check_weights(job.weights)
    processes.check_batch_size(settings.batch_size)
    place = parse_device(device)

    def fitted(precision: Precision) -> TrainingResult:
        with ExitStack() as stack:
            stack.enter_context(repeatable(place, cpu_threads=settings.cpu_threads))
            if job.trainable_extras is not None:
                stack.enter_context(_borrowed(job.trainable_extras, place))
            engine = Engine(precision, place, processes)
            loop = _Loop(job, settings, engine, seed=seed, device=place, folder=folder)
            stack.enter_context(shared_norms(loop.state.trained, processes))
            stack.enter_context(engine.mixed(loop.state.model, loop.state.averaged))
            loop.run(progress)
        return loop.result()

    try:
        return fitted(settings.precision)
    except _ReducedError as error:
        found = f"{job.name!r} cannot run in bf16 ({first_line(error.cause)})"
        if settings.precision != "auto":
            message = f"{found}: set precision to fp32 or auto"
            raise processes.told(TrainingError(message)) from error.cause
    if processes.rank == 0:
        warnings.warn(f"{found}: it is trained in fp32", CoaWarning, stacklevel=2)
    return fitted("fp32")


class _ReducedError(Exception):
    """The first step fails where the network runs in fewer digits than float32."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Loop:
    def __init__(
        self,
        job: TrainingJob,
        settings: TrainingSettings,
        engine: Engine,
        *,
        seed: int,
        device: torch.device,
        folder: Path | None,
    ) -> None:
        self.job, self.settings, self.seed = job, settings, seed
        self.engine, self.device, self.folder = engine, device, folder
        self.processes = processes = engine.processes
        model = placed(copied(job.model), device)
        _set_layout_(model, torch.contiguous_format if processes.sharded else torch.channels_last)
        self.state = LoopState(
            model,
            job.trainable_extras,
            weight_decay=settings.weight_decay,
            log_every=max(1, settings.steps // 100),
            processes=processes,
        )
        self.engine.setup_(self.state.trained, self.state.optimizer)
        self.digest = _digest(job, settings, seed)
        processes.check_agreed("training job or network", self.digest)
        if folder is not None:
            self.state.restore_(folder, self.digest)
        processes.check_agreed("checkpoint", self.state.step)

    def run(self, progress: Progress) -> None:
        state, settings = self.state, self.settings
        advance = self._try_to_advance
        while state.step < settings.steps and not self._stalled():
            rate = learning_rate_at(state.step, settings)
            losses = advance(rate)
            advance = self._advance
            last = state.step == settings.steps
            state.log.add(state.step, losses, last=last)
            if last or state.step % settings.validate_every == 0:
                self._validate()
            if self.folder is not None and (last or state.step % settings.checkpoint_every == 0):
                state.save(self.folder, self.digest)
            total = sum(self.job.weights.get(name, 0.0) * loss for name, loss in losses.items())
            progress(state.step, settings.steps, {**losses, "loss": total, "lr": rate})

    def _stalled(self) -> bool:
        """Return whether no validation has been better for longer than was asked for."""
        patience, state = self.settings.patience, self.state
        return (
            patience is not None
            and state.best is not None
            and (state.step - state.best_step >= patience)
        )

    def result(self) -> TrainingResult:
        state = self.state
        model = copied(self.job.model)
        fill_(model, packed(dict(tensors_of(state.averaged)) if state.best is None else state.best))
        return TrainingResult(
            model=model.eval(),
            history=state.log.history(),
            best_step=state.step if state.best is None else state.best_step,
            best_value=state.best_value,
        )

    def _try_to_advance(self, rate: float) -> dict[str, float]:
        """Take a step; tell apart what may go well with more digits.

        A network may mix tensors that autocast turns into bfloat16 with others that it does not,
        as in a backward pass written by hand.
        """
        try:
            return self._advance(rate)
        except CoaError:
            raise
        except FOREIGN_ERRORS as error:
            if not self.engine.reduced or is_out_of_memory(error):
                raise
            raise _ReducedError(error) from error

    def _advance(self, rate: float) -> dict[str, float]:
        state, settings = self.state, self.settings
        buffers = state.buffers()
        state.optimizer.zero_grad()
        sums: dict[str, float] = {}
        for micro in range(settings.accumulate):
            named = self._losses(micro, buffers)
            total = weighted_total(named, self.job.weights)
            # the mean over all processes: where one of them fails, every one sees it and stops
            values = values_of(named, self.processes)
            for name, value in values.items():
                if self.job.weights.get(name, 0.0) != 0.0 and not math.isfinite(value):
                    self._stop(f"loss {name!r}", value, buffers)
                sums[name] = sums.get(name, 0.0) + value / settings.accumulate
            self.engine.backward(total / settings.accumulate)
        self.engine.average_()
        norm = self.engine.clip_(settings.clip_norm)
        if not math.isfinite(norm):
            self._stop("the norm of the gradient", norm, buffers)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step_()
        self.processes.broadcast_(other_buffers(state.trained))
        update_average_(state.averaged, state.model, decay_at(state.step, settings.ema_decay))
        state.step += 1
        if self.job.after_step is not None:
            self.job.after_step(state.model, state.step)
        return sums

    def _losses(self, micro: int, buffers: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        try:
            named = self._step_losses(micro)
        except RuntimeError as error:
            # networks that call .view on activations need the plain layout
            if micro > 0 or _VIEW_FAILED not in str(error) or not self._use_plain_layout_():
                raise
            self.state.restore_buffers_(buffers)
            named = self._step_losses(micro)
        check_names(named.keys(), self.job.weights)
        return named

    def _step_losses(self, micro: int) -> Mapping[str, Tensor]:
        state = self.state
        place = (self.job.name, self.seed, state.step, micro)
        state.trained.train()
        state.averaged.eval()
        # dropout differs from process to process, as it does from example to example
        apart = (self.processes.rank,) if self.processes.rank else ()
        seed_global_(self.device, seed_of("global", *place, *apart))
        generator = torch.Generator().manual_seed(step_seed(*place))
        return self.job.step_losses(state.model, state.averaged, generator)

    def _use_plain_layout_(self) -> bool:
        changed = _set_layout_(self.state.model, torch.contiguous_format)
        return _set_layout_(self.state.averaged, torch.contiguous_format) or changed

    @torch.no_grad()
    def _validate(self) -> None:
        if self.job.validate is None:
            return
        averaged = self._whole_average()
        value = 0.0
        with self.processes.leading() as leads:
            if leads:
                value = float(self.job.validate(averaged))
        value = self.processes.broadcast(value)
        if math.isnan(value):
            message = (
                f"validation of {self.job.name!r} returned nan at step {self.state.step}: "
                f"higher must be better, so it must be a number"
            )
            raise self.processes.told(TrainingError(message))
        self.state.note_validation(value)

    def _whole_average(self) -> nn.Module:
        """Return the averaged network as one that a single process can run."""
        averaged = self.state.averaged.eval()
        if not self.processes.sharded:
            return averaged
        model = copied(self.job.model)
        fill_(model, packed(dict(tensors_of(averaged))))
        return placed(model, self.device).eval()

    def _stop(self, what: str, value: float, buffers: Mapping[str, Tensor]) -> NoReturn:
        state, settings = self.state, self.settings
        message = (
            f"{what} became {value} at step {state.step + 1} of {settings.steps} of "
            f"{self.job.name!r}: lower learning_rate (now {settings.learning_rate:g}) or "
            f"clip_norm (now {settings.clip_norm:g})"
        )
        if self.engine.reduced:
            message += ", or set precision to fp32"
        if self.folder is not None:
            state.restore_buffers_(buffers)
            if state.is_finite():
                state.save(self.folder, self.digest)
            message += f"; the last good state is in {self.folder / CHECKPOINT_NAME}"
        raise self.processes.told(TrainingError(message))


def _digest(job: TrainingJob, settings: TrainingSettings, seed: int) -> str:
    described = asdict(settings)
    # neither changes a bit of the result
    del described["checkpoint_every"], described["workers"]
    modules = {"model": job.model}
    if job.trainable_extras is not None:
        modules["extras"] = job.trainable_extras
    return digest_job(
        {"name": job.name, "seed": seed, "weights": dict(job.weights), "settings": described},
        modules,
    )


def _set_layout_(model: nn.Module, layout: torch.memory_format) -> bool:
    """Lay 4-D parameters out in memory; return whether that changed any."""
    weights = [p for p in model.parameters() if p.dim() == 4]
    changed = [weight for weight in weights if not weight.is_contiguous(memory_format=layout)]
    for weight in changed:
        weight.data = weight.data.contiguous(memory_format=layout)
    return bool(changed)


@contextmanager
def _borrowed(extras: nn.Module, device: torch.device) -> Iterator[None]:
    """Move modules to a device; give them back where and as they were."""
    before = copied(extras)
    try:
        placed(extras, device)
        yield
    finally:
        for module, old in zip(extras.modules(), before.modules(), strict=True):
            module.training = old.training
        extras.zero_grad(set_to_none=True)
        saved = dict(tensors_of(before))
        for origin in {tensor.device for tensor in saved.values()}:
            extras.to(origin)
        fill_(extras, saved)
