"""Several processes that train one network together, each on its share of every batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from coa_compress.errors import CoaError, RunError, TrainingError

T = TypeVar("T")

Strategy = Literal["ddp", "fsdp"]
"""Whether each process holds the whole network in training, or its share of it."""

SAID_BY_THE_FIRST = "the first process says so too"
"""A note on errors that the first process raises as well, so that one process prints them."""

_BUCKET_NUMBERS = 8_000_000  # 32 MB of float32 in one exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among those that train together; alone unless told otherwise.

    Each collective method must be called by all processes in the same order. The process group of
    ``torch.distributed`` is made by ``launch_processes``, or by whoever starts the processes.

    Args:
        rank: Number of this process, from 0.
        count: How many there are.
        device: Where this process works, such as ``cuda:1``; None leaves it to the recipe.
        strategy: ``fsdp`` splits the network in training, its average and its optimizer.

    >>> ALONE.leads, ALONE.count
    (True, 1)
    """

    rank: int = 0
    count: int = 1
    device: str | None = None
    strategy: Strategy = "ddp"

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, validates and speaks."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether the network in training is split among the processes."""
        return self.strategy == "fsdp" and self.count > 1

    def check_batch_size(self, batch_size: int) -> None:
        """Check that a batch can be shared evenly.

        Raises:
            TrainingError: If not: means over uneven shares would not add up to the mean.

        >>> Processes(count=2).check_batch_size(5)
        Traceback (most recent call last):
        coa_compress.errors.TrainingError: batch_size 5 cannot be shared by 2 processes: \
make it a multiple of 2
        """
        if batch_size % self.count:
            message = (
                f"batch_size {batch_size} cannot be shared by {self.count} processes: "
                f"make it a multiple of {self.count}"
            )
            raise TrainingError(message)

    def share(self, examples: Tensor) -> Tensor:
        """Return this process' examples of a batch that all processes know.

        Args:
            examples: The batch of all processes, its first dimension a multiple of ``count``.

        Raises:
            TrainingError: If it cannot be shared evenly.

        >>> Processes(rank=1, count=2).share(torch.arange(4))
        tensor([1, 3])
        """
        if self.count == 1:
            return examples
        self.check_batch_size(len(examples))
        return examples[self.rank :: self.count].contiguous()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes; it carries gradients of any order."""
        if self.count == 1:
            return values
        found: Tensor = _Mean.apply(values, self.count)  # type: ignore[no-untyped-call]
        return found

    def broadcast(self, value: T) -> T:
        """Return what the first process gives; anything that pickle takes."""
        if self.count == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Fill tensors with what the first process holds."""
        if self.count > 1:
            for tensor in tensors:
                dense = tensor.contiguous()
                torch.distributed.broadcast(dense, src=0)
                if dense is not tensor:
                    tensor.copy_(dense)

    def check_agreed(self, what: str, value: object) -> None:
        """Check that all processes are about to do the same.

        Args:
            what: Named in the message.
            value: What must be equal, JSON-like.

        Raises:
            TrainingError: On every process, if it differs on any.
        """
        if self.count == 1:
            return
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        odd = [rank for rank, other in enumerate(found) if other != found[0]]
        if odd:
            message = (
                f"process {odd[0]} has another {what} than process 0: start all processes with "
                f"the same command, and give them a run folder that all of them see"
            )
            raise self.told(TrainingError(message))

    @contextmanager
    def leading(self) -> Iterator[bool]:
        """Let the first process work while the others wait; if it fails, all do.

        Yields:
            Whether this process is to do the work.

        Raises:
            RunError: In the other processes, if the first one failed.

        >>> with ALONE.leading() as leads:
        ...     print(leads)
        True
        """
        if self.count == 1:
            yield True
        elif self.leads:
            failure: str | None = None
            try:
                yield True
            except Exception as error:
                known = isinstance(error, CoaError)
                failure = str(error) if known else f"process 0 stopped by {error!r}"
                raise
            finally:
                self.broadcast(failure)
        else:
            yield False
            told = self.broadcast(None)
            if told is not None:
                raise self.told(RunError(told))

    def told(self, error: CoaError) -> CoaError:
        """Return an error that all processes raise, marked where it need not be printed."""
        if not self.leads:
            error.add_note(SAID_BY_THE_FIRST)
        return error

    @torch.no_grad()
    def average_gradients_(self, module: nn.Module) -> None:
        """Replace gradients by their mean over the processes, a few large exchanges in all.

        Parameters that are split among the processes are left alone: their gradients were
        averaged in the backward pass.

        Args:
            module: All processes have the same parameters with gradients.
        """
        if self.count == 1:
            return
        held = [p for p in module.parameters() if p.requires_grad and not is_split(p)]
        if not held:
            return
        # a parameter that no process used keeps no gradient: the optimizer then leaves it alone
        used = self.mean(torch.tensor([float(p.grad is not None) for p in held]).to(held[0].device))
        held = [p for p, part in zip(held, used.tolist(), strict=True) if part > 0]
        for parameter in held:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in held if p.grad is not None]):
            flat = self.mean(torch.cat([part.reshape(-1) for part in bucket]))
            parts = torch.split(flat, [part.numel() for part in bucket])
            for part, mean in zip(bucket, parts, strict=True):
                part.copy_(mean.view(part.shape))


ALONE = Processes()
"""One process: nothing is shared, nothing is exchanged."""


def is_split(tensor: Tensor) -> bool:
    """Return whether a tensor is split among processes (a ``DTensor``).

    >>> is_split(torch.zeros(2))
    False
    """
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; if it is split, every process must ask.

    >>> whole(torch.zeros(2))
    tensor([0., 0.])
    """
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: all of it, unless it is split.

    >>> own_part(torch.zeros(2))
    tensor([0., 0.])
    """
    part: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


class _Mean(torch.autograd.Function):
    """The mean over processes; the gradient of the sum of all losses flows back the same way."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, count: int) -> Tensor:
        ctx.count = count
        total = values.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Mean.apply(gradient, ctx.count), None  # type: ignore[no-untyped-call]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one kind together, about 32 MB at a time."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(part.numel() for part in bucket) + tensor.numel() > _BUCKET_NUMBERS
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
