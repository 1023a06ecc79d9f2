"""Where figures come from: versions, machine, source revision."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from coa_compress._version import __version__
from coa_compress.errors import RecipeError

_LIBRARIES = ("numpy", "lightning-fabric", "safetensors", "torchmetrics", "pillow")

_DEVICE = re.compile(r"cpu|cuda(:[0-9]+)?")
_PROCESSORS = Path("/proc/cpuinfo")
"""Where Linux names the processors."""


def versions() -> dict[str, str]:
    """Return the version of Python, of this package and of what figures depend on.

    >>> sorted(versions())[:2]
    ['coa-compress', 'lightning-fabric']
    """
    found = {
        "python": platform.python_version(),
        "coa-compress": __version__,
        "torch": str(torch.__version__),  # with the build, such as +cpu or +cu130
    }
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str) -> dict[str, object]:
    """Return the processor, the device and the number of threads that figures depend on.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
    """
    return {
        "device": device,
        "device_name": device_title(device),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def device_title(device: str) -> str:
    """Return the name of the GPU, or of the model of the processor where the system tells it.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    >>> device_title("cpu") != ""
    True
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    try:
        lines = _PROCESSORS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), "") or platform.processor() or platform.machine() or "CPU"


def commit() -> str | None:
    """Return the git revision of the source that is running, or None for an installed package."""
    source = Path(__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def best_device() -> str:
    """Return ``cuda`` where torch sees a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(choice: str) -> str:
    """Return a device that is there.

    Args:
        choice: ``auto`` for the best, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        RecipeError: If it is none of these, or a GPU that torch does not see.

    >>> usable_device("cpu")
    'cpu'
    >>> usable_device("tpu")
    Traceback (most recent call last):
    coa_compress.errors.RecipeError: device must be auto, cpu, cuda or cuda:N, got 'tpu'
    """
    if choice == "auto":
        return best_device()
    if not _DEVICE.fullmatch(choice):
        message = f"device must be auto, cpu, cuda or cuda:N, got {choice!r}"
        raise RecipeError(message)
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(choice)
    if device.type == "cuda" and (device.index or 0) >= seen:
        message = f"device {choice!r} is not there, torch sees {seen} GPUs: use auto or cpu"
        raise RecipeError(message)
    return choice
