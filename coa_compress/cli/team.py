"""The processes of one command: those it starts itself, and those that torchrun has started."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coa_compress.errors import SettingError

Strategy = Literal["ddp", "fsdp"]

_TORCHRUN = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The processes that are to train together.

    Args:
        devices: On this machine.
        nodes: Machines.
        strategy: How they train together.
        follows: Whether this process is not the first one: it shows and writes nothing.
    """

    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "ddp"
    follows: bool = False

    def launch(self, device: str) -> Any:
        """Return this process among all of them, which are started where torchrun did not.

        Args:
            device: ``cpu`` or ``cuda``.
        """
        from coa_compress.training.launching import launch_processes

        return launch_processes(
            device, devices=self.devices, nodes=self.nodes, strategy=self.strategy
        )


def team_of(devices: int | None, strategy: Strategy, environment: Mapping[str, str]) -> Team:
    """Return the team that a command asks for.

    Args:
        devices: What ``--devices`` says; None for one, or for those of torchrun.
        strategy: What ``--strategy`` says.
        environment: Of this process.

    Raises:
        SettingError: If torchrun has started another number of processes.

    >>> team_of(2, "ddp", {}).devices
    2
    >>> team_of(2, "ddp", {"LOCAL_RANK": "1"}).follows
    True
    >>> team_of(3, "ddp", {"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "2"})
    Traceback (most recent call last):
    coa_compress.errors.SettingError: --devices 3, but torchrun has started 2 processes on this \
machine: leave --devices out
    """
    if _TORCHRUN not in environment:
        # a process that this command has started knows its number on this machine
        follows = (devices or 1) > 1 and environment.get("LOCAL_RANK", "0") != "0"
        return Team(devices=devices or 1, strategy=strategy, follows=follows)
    here = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if devices not in (None, here):
        message = (
            f"--devices {devices}, but torchrun has started {here} processes on this machine: "
            f"leave --devices out"
        )
        raise SettingError(message)
    nodes = int(environment.get("WORLD_SIZE", str(here))) // here
    follows = environment.get("RANK", "0") != "0"
    return Team(devices=here, nodes=nodes, strategy=strategy, follows=follows)


def said_elsewhere(error: Exception) -> bool:
    """Return whether the first process prints an error too.

    >>> said_elsewhere(ValueError())
    False
    """
    notes: list[str] = getattr(error, "__notes__", [])
    if not notes:
        return False
    from coa_compress.training.processes import SAID_BY_THE_FIRST

    return SAID_BY_THE_FIRST in notes
