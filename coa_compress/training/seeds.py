"""Random numbers that depend on nothing but names and step numbers."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BITS = 63


def seed_of(*parts: str | int) -> int:
    """Return a seed that is the same on every machine and in every process.

    Args:
        parts: Names and numbers that the seed depends on, in order.

    Returns:
        A whole number in ``[0, 2**63)``.

    >>> seed_of("distill", 0, 7) == seed_of("distill", 0, 7)
    True
    >>> seed_of("distill", 0, 7) == seed_of("distill", 0, 8)
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _BITS)


def generator_of(*parts: str | int) -> torch.Generator:
    """Return a CPU generator seeded by ``seed_of``.

    >>> torch.equal(
    ...     torch.rand(2, generator=generator_of("a", 1)),
    ...     torch.rand(2, generator=generator_of("a", 1)),
    ... )
    True
    """
    return torch.Generator().manual_seed(seed_of(*parts))


def step_seed(job: str, seed: int, step: int, micro: int) -> int:
    """Return the seed of the random numbers of one micro-step of a training job.

    Args:
        job: Name of the job.
        seed: Seed of the job.
        step: Optimizer steps done before it.
        micro: Number of the micro-step in its step.

    >>> step_seed("distill", 0, 7, 0) == seed_of("step", "distill", 0, 7, 0)
    True
    """
    return seed_of("step", job, seed, step, micro)


def seed_global_(device: torch.device, seed: int) -> None:
    """Seed the global generators that dropout draws from, of the CPU and of one device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def repeatable(device: torch.device, *, cpu_threads: int = 1) -> Iterator[None]:
    """Give the global generators back as they were, and keep to repeatable algorithms.

    Args:
        device: Where the work is done.
        cpu_threads: Threads on a CPU; more than one may add up in another order each time.

    Yields:
        Nothing.
    """
    if device.type != "cuda":
        threads = torch.get_num_threads()
        with torch.random.fork_rng(devices=[]):
            try:
                torch.set_num_threads(cpu_threads)
                yield
            finally:
                torch.set_num_threads(threads)
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.random.fork_rng(devices=[index]):
        try:
            cudnn.deterministic, cudnn.benchmark = True, False
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before
