"""Batches drawn ahead of time in worker processes, with the same bits as without them.

A batch is a pure function of a generator that is seeded for one job, seed, step and micro-step. So
a worker can draw the batches of coming steps, and hand on the state that its generator ended in. A
prepared batch is used only where the generator at hand is in the state the worker started from;
every other batch is drawn where it is asked for. Workers change when a batch is made, and nothing
else.
"""

import io
import logging
import multiprocessing
import pickle
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from torch import Tensor

from coa_compress.errors import CoaError, NoEffectWarning, TrainingError
from coa_compress.training.seeds import step_seed
from coa_compress.training.settings import TrainingSettings

_LOG = logging.getLogger(__name__)
_BATCHES_AHEAD = 2
_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a task.

    Args:
        method: A method of the task that takes a batch size and a generator.
        batch_size: Examples in the batch.
    """

    method: str
    batch_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A batch and the states of the generator around it.

    Args:
        request: What was asked for.
        before: State before it was drawn.
        after: State after.
        batch: The batch.
    """

    request: Request
    before: bytes
    after: bytes
    batch: Any


class BatchSupply:
    """Draws batches of a task, with the help of worker processes inside ``ahead``.

    Args:
        task: Has the methods that requests name.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self._queue: _Queue | None = None

    def draw(self, method: str, batch_size: int, generator: torch.Generator) -> Any:
        """Return a batch on the CPU; the generator ends in the same state with and without workers.

        Args:
            method: A method of the task that takes a batch size and a generator.
            batch_size: Examples in the batch.
            generator: The only source of randomness.
        """
        request = Request(method, batch_size)
        if self._queue is None:
            return drawn(self._task, request, generator)
        return self._queue.draw(request, generator)

    @contextmanager
    def ahead(self, job: str, settings: TrainingSettings, *, seed: int) -> Iterator[None]:
        """Keep workers that draw the batches of coming steps; they have ended on exit.

        Args:
            job: Name of the training job, as in its seeds.
            settings: ``workers`` is how many; with 0 nothing is started.
            seed: Seed of the job.

        Raises:
            TrainingError: If the task cannot be sent to another process.
        """
        if settings.workers == 0:
            yield
            return
        seeds = [
            step_seed(job, seed, step, micro)
            for step in range(settings.steps)
            for micro in range(settings.accumulate)
        ]
        with _workers(self._task, settings.workers) as found:
            self._queue = _Queue(self._task, found, seeds)
            try:
                yield
                self._queue.warn_if_useless()
            finally:
                self._queue = None


def drawn(task: Any, request: Request, generator: torch.Generator) -> Any:
    """Return a batch, drawn on one thread: sums then have the same bits wherever it is drawn."""
    threads = torch.get_num_threads()
    if threads == 1:
        return getattr(task, request.method)(request.batch_size, generator)
    try:
        torch.set_num_threads(1)
        return getattr(task, request.method)(request.batch_size, generator)
    finally:
        torch.set_num_threads(threads)


class _Worker:
    """One process and the two ends of what it is told and what it answers, in order."""

    def __init__(self, process: SpawnProcess, pipe: Connection) -> None:
        self._process, self._pipe = process, pipe

    def ask(self, seed: int, requests: Sequence[Request]) -> bool:
        """Ask for the batches of one micro-step; return whether the worker is there."""
        try:
            self._pipe.send((seed, tuple(requests)))
        except OSError:
            return False
        return True

    def answer(self) -> list[Prepared]:
        """Return the batches asked for longest ago; none if the worker could not make them."""
        try:
            found: list[Prepared] = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join(_JOIN_S)
            _LOG.warning(
                "a worker process ended with code %s: its batches are drawn in this process",
                self._process.exitcode,
            )
            return []
        return found

    def end(self) -> None:
        """Let the process end: it does once nobody holds the other end of its pipe."""
        self._pipe.close()
        self._process.join(_JOIN_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._process.close()


class _Queue:
    """What was asked of the workers for which seed, and what is at hand for the present one."""

    def __init__(self, task: Any, workers: Sequence[_Worker], seeds: Sequence[int]) -> None:
        self._task, self._workers, self._seeds = task, workers, seeds
        self._places = {seed: place for place, seed in enumerate(seeds)}
        self._asked: dict[int, _Worker] = {}
        self._plan: dict[bytes, Request] = {}
        self._present = -1
        self._places_seen = 0
        self._next = 0
        self._at_hand: list[Prepared] = []
        self._used = 0

    def draw(self, request: Request, generator: torch.Generator) -> Any:
        place = self._places.get(generator.initial_seed(), -1)
        if place != self._present and place >= 0:
            self._go_to(place)
        before = _state(generator)
        for prepared in self._at_hand:
            if place >= 0 and (prepared.request, prepared.before) == (request, before):
                generator.set_state(torch.frombuffer(bytearray(prepared.after), dtype=torch.uint8))
                self._used += 1
                return prepared.batch
        if self._places_seen == 1:
            # the first step shows what every step asks for; it may be begun twice
            self._plan[before] = request
        return drawn(self._task, request, generator)

    def warn_if_useless(self) -> None:
        if self._used == 0 and self._places_seen > 1 + len(self._workers) * _BATCHES_AHEAD:
            message = (
                "training.workers has no effect: each step draws random numbers of its own before "
                "its batches"
            )
            warnings.warn(message, NoEffectWarning, stacklevel=2)

    def _go_to(self, place: int) -> None:
        self._present = place
        self._places_seen += 1
        for skipped in sorted(asked for asked in self._asked if asked < place):
            # an answer that nobody takes would block its worker
            self._asked.pop(skipped).answer()
        worker = self._asked.pop(place, None)
        self._at_hand = [] if worker is None else worker.answer()
        if self._places_seen == 1:
            return
        self._next = max(self._next, place + 1)
        last = min(place + _BATCHES_AHEAD * len(self._workers), len(self._seeds) - 1)
        while self._next <= last:
            worker = self._workers[self._next % len(self._workers)]
            if worker.ask(self._seeds[self._next], list(self._plan.values())):
                self._asked[self._next] = worker
            self._next += 1


@contextmanager
def _workers(task: Any, count: int) -> Iterator[list[_Worker]]:
    sent = _sendable(task)
    context = multiprocessing.get_context("spawn")
    started: list[_Worker] = []
    try:
        with _interrupts_ignored():
            for _ in range(count):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there,), daemon=True)
                process.start()
                there.close()
                started.append(_Worker(process, here))
                here.send_bytes(sent)
        yield started
    finally:
        for worker in started:
            worker.end()


def _sendable(task: Any) -> bytes:
    try:
        return pickle.dumps(task)
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        message = (
            f"task {type(task).__name__} cannot be sent to worker processes ({error}): "
            "set training.workers to 0"
        )
        raise TrainingError(message) from None


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: the one that was interrupted ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection) -> None:
    """Answer in a worker process until the other end of the pipe is closed."""
    torch.set_num_threads(1)
    try:
        task = pickle.loads(pipe.recv_bytes())
        while True:
            seed, requests = pipe.recv()
            pipe.send_bytes(_packed(_prepared(task, seed, requests)))
    except (EOFError, OSError):
        return


def _prepared(task: Any, seed: int, requests: Sequence[Request]) -> list[Prepared]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for request in requests:
        before = _state(generator)
        try:
            batch = drawn(task, request, generator)
        except CoaError:
            # whoever asks draws it again, and so raises it at its step
            break
        found.append(Prepared(request, before, _state(generator), batch))
    return found


def _state(generator: torch.Generator) -> bytes:
    return generator.get_state().numpy().tobytes()


class _Packer(pickle.Pickler):
    """Packs tensors as arrays: torch would copy them through an archive."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor and value.device.type == "cpu" and value.dtype != torch.bfloat16:
            return torch.from_numpy, (value.detach().numpy(),)
        return NotImplemented


def _packed(value: Any) -> bytes:
    file = io.BytesIO()
    _Packer(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()
