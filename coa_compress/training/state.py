"""Everything a training loop must remember to go on after an interruption, and its file."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from coa_compress.atomic import write_atomic
from coa_compress.errors import TrainingError, WeightsError
from coa_compress.training.averaging import averaged_copy, tensors_of
from coa_compress.training.log import LossLog
from coa_compress.training.processes import ALONE, Processes, whole
from coa_compress.training.sharding import copy_into_, split_

CHECKPOINT_NAME = "training.safetensors"
"""Name of the checkpoint in the folder that ``fit`` is given."""

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class LoopState:
    """A network in training, its average, its optimizer, and how far they are.

    Args:
        model: The network, changed in place by training.
        extras: Modules trained along with it, or None.
        weight_decay: Decoupled weight decay of parameters with two or more dimensions.
        log_every: Steps in one entry of the history.
        processes: Those that train together; the first one writes.

    Raises:
        TrainingError: If no parameter needs a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        extras: nn.Module | None,
        *,
        weight_decay: float,
        log_every: int,
        processes: Processes = ALONE,
    ) -> None:
        self.model = model
        self.averaged = averaged_copy(model)
        self._processes = processes
        for network in (self.model, self.averaged):
            split_(network, processes)
        self.trained = nn.ModuleDict({"model": model})
        if extras is not None:
            self.trained["extras"] = extras
        self.optimizer = _adamw(self.trained, weight_decay)
        self.log = LossLog(log_every)
        self.step = 0
        self.best: dict[str, Tensor] | None = None
        self.best_step = 0
        self.best_value: float | None = None

    def note_validation(self, value: float) -> None:
        """Log a validation of the averaged network, and keep its weights if they are the best."""
        self.log.add_validation(self.step, value)
        if self.best_value is None or value > self.best_value:
            self.best_value, self.best_step = value, self.step
            self.best = {n: t.detach().clone() for n, t in tensors_of(self.averaged)}

    def buffers(self) -> dict[str, Tensor]:
        """Return a copy of the buffers, which a forward pass may change."""
        return {name: buffer.clone() for name, buffer in self.trained.named_buffers()}

    def restore_buffers_(self, saved: Mapping[str, Tensor]) -> None:
        """Put buffers back as they were."""
        for name, buffer in self.trained.named_buffers():
            if name in saved:
                buffer.copy_(saved[name])

    def is_finite(self) -> bool:
        """Return whether every trained parameter is a finite number."""
        return all(bool(whole(p.detach()).isfinite().all()) for p in self.trained.parameters())

    def save(self, folder: Path, digest: str) -> None:
        """Write the checkpoint; the one before stays whole until the new one is.

        Where several processes train, all must call it.

        Args:
            folder: Where; made when absent.
            digest: Identifies the job that may go on from it.
        """
        record = {
            "digest": digest,
            "step": self.step,
            "best_step": self.best_step,
            "best_value": self.best_value,
            "log": self.log.to_json(),
        }
        tensors = packed(dict(self._tensors()))
        if self._processes.leads:
            data = to_safetensors(tensors, {"state": json.dumps(record)})
            write_atomic(folder / CHECKPOINT_NAME, data)

    def restore_(self, folder: Path, digest: str) -> bool:
        """Go on from the checkpoint in a folder.

        Args:
            folder: Where it is looked for.
            digest: Identifies the job.

        Returns:
            Whether there was one.

        Raises:
            TrainingError: If it belongs to another job or other settings; it is left as it is.
            WeightsError: If it is damaged.
        """
        path = folder / CHECKPOINT_NAME
        if not path.exists():
            return False
        record, tensors = _read(path)
        try:
            if record["digest"] != digest:
                message = (
                    f"{path} is a checkpoint of another job, teacher, seed or settings: "
                    f"give another folder, or delete the file to start anew"
                )
                raise TrainingError(message)
            self._take_(record, tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, TrainingError):
                raise
            raise _damaged(path, error) from None
        return True

    def _take_(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        fill_(self.trained, tensors, prefix="trained.")
        fill_(self.averaged, tensors, prefix="averaged.")
        for name, parameter in self.trained.named_parameters():
            if f"step.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    "step": tensors[f"step.{name}"].clone(),
                    "exp_avg": _filled(parameter, tensors[f"exp_avg.{name}"]),
                    "exp_avg_sq": _filled(parameter, tensors[f"exp_avg_sq.{name}"]),
                }
        self.step = int(record["step"])
        self.best_step = int(record["best_step"])
        self.best_value = record["best_value"]
        if self.best_value is not None:
            self.best = {n: tensors[f"best.{n}"].clone() for n, _ in tensors_of(self.averaged)}
        self.log.restore_(record["log"])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors_of(self.trained):
            yield f"trained.{name}", tensor
        for name, tensor in tensors_of(self.averaged):
            yield f"averaged.{name}", tensor
        for name, tensor in (self.best or {}).items():
            yield f"best.{name}", tensor
        for name, parameter in self.trained.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            for moment in _MOMENTS:
                if moment in state:
                    yield f"{moment}.{name}", state[moment]


def _adamw(trained: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    parameters = [p for p in trained.parameters() if p.requires_grad]
    if not parameters:
        message = "nothing to train: no parameter of the network has requires_grad"
        raise TrainingError(message)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


@torch.no_grad()
def fill_(module: nn.Module, tensors: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Copy tensors into the parameters and buffers of a module.

    Args:
        module: Changed in place.
        tensors: One for each parameter and buffer, of the same shape, under its name.
        prefix: What precedes the name in ``tensors``.
    """
    for name, tensor in tensors_of(module):
        source = tensors[prefix + name]
        if source.shape != tensor.shape:
            message = f"{prefix}{name} has shape {tuple(source.shape)}, not {tuple(tensor.shape)}"
            raise ValueError(message)
        copy_into_(tensor, source)


def _filled(like: Tensor, source: Tensor) -> Tensor:
    """Return a tensor of the layout of another one."""
    made = torch.zeros_like(like)
    copy_into_(made, source)
    return made


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whole, on the CPU, in the plain layout that a safetensors file needs."""
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def digest_job(description: Mapping[str, object], modules: Mapping[str, nn.Module]) -> str:
    """Return an identity of a training job: what was asked for, and every weight it starts from.

    Args:
        description: JSON values.
        modules: Networks by role.

    >>> with torch.random.fork_rng():
    ...     net = nn.Linear(1, 1)
    >>> digest_job({"seed": 0}, {"model": net}) == digest_job({"seed": 1}, {"model": net})
    False
    """
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for role, module in modules.items():
        digest.update(role.encode())
        digest.update(to_safetensors(packed(dict(tensors_of(module)))))
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["state"])
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> WeightsError:
    message = (
        f"checkpoint {path} is damaged ({error}): delete it to train this stage from its start"
    )
    return WeightsError(message)
