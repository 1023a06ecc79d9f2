"""Start several training processes, or join those that torchrun has started."""

import warnings
from datetime import timedelta

import torch

from coa_compress.errors import NoEffectWarning, TrainingError
from coa_compress.training.engine import parse_device, quiet
from coa_compress.training.processes import ALONE, Processes, Strategy

# the others wait while the first process scores, cuts or measures
_PATIENCE = timedelta(hours=6)


def launch_processes(
    device: str, *, devices: int, nodes: int = 1, strategy: Strategy = "ddp"
) -> Processes:
    """Return this process among several; the command that runs is started anew for the others.

    Lightning Fabric starts the others, or joins those of torchrun, SLURM or MPI. What each of
    them runs up to here must be the same.

    Args:
        device: ``cpu`` or ``cuda``, one kind for all.
        devices: Processes on this machine: GPUs, or processes on the CPU.
        nodes: Machines; more than one are started from outside, such as by torchrun.
        strategy: ``ddp``, or ``fsdp`` to split what is trained among the processes.

    Raises:
        TrainingError: If there are not so many devices, or one GPU is named.

    >>> launch_processes("cpu", devices=1).count
    1
    """
    _check(device, devices)
    if devices * nodes == 1:
        if strategy == "fsdp":
            message = "strategy fsdp has no effect: there is one process, give more devices"
            warnings.warn(message, NoEffectWarning, stacklevel=2)
        return ALONE
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    with quiet("lightning_fabric"):
        fabric = Fabric(
            accelerator=torch.device(device).type,
            devices=devices,
            num_nodes=nodes,
            strategy=DDPStrategy(timeout=_PATIENCE),
        )
        fabric.launch()
    return Processes(
        rank=fabric.global_rank,
        count=fabric.world_size,
        device=str(fabric.device),
        strategy=strategy,
    )


def _check(device: str, devices: int) -> None:
    if devices < 1:
        message = f"cannot train on {devices} devices: give 1 or more"
        raise TrainingError(message)
    place = parse_device(device)
    if place.type != "cuda":
        return
    if place.index is not None and devices > 1:
        message = f"device {device} is one GPU: give device cuda to train on {devices} of them"
        raise TrainingError(message)
    seen = torch.cuda.device_count()
    if devices > seen:
        message = f"cannot train on {devices} GPUs: torch sees {seen} here"
        raise TrainingError(message)
