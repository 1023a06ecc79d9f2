"""Train the teacher on labelled pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch
from coa_compress.copying import placed
from coa_compress.errors import TrainingError
from coa_compress.protocols import Task
from coa_compress.settings import NonNegativeFloat
from coa_compress.stages.files import load_history, load_network, save_history, save_network
from coa_compress.stages.state import Context, State
from coa_compress.training.loop import TrainingJob
from coa_compress.training.objective import check_weights
from coa_compress.training.settings import TrainingSettings
from coa_compress.training.terms import prefixed, weighted_terms

_LOSSES = "stages.train.losses"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How the teacher is trained.

    Args:
        training: Steps, batch size, learning rate and the like.
        losses: Weight of each of the task's losses against the truth; 0 is allowed.
    """

    training: TrainingSettings = field(default_factory=TrainingSettings)
    losses: Mapping[str, NonNegativeFloat] = field(default_factory=lambda: {"l1": 1.0})


class Train:
    """From the task's network to a trained teacher."""

    name = "train"
    trains = True
    Settings = TrainSettings
    needs: tuple[str, ...] = ()

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Raise if a loss does not exist, none counts, or the task has no truth."""
        del state
        self._weights(context.task)
        check_weights(prefixed(_LOSSES, self.settings.losses))
        truth_of(context.task.calibration_batches()[0], "stages.train")

    def run(self, state: State, context: Context) -> State:
        """Return the state with a trained teacher."""
        batch_size = self.settings.training.batch_size
        losses = context.task.losses
        weights = self._weights(context.task)

        def step_losses(
            model: nn.Module, _average: nn.Module, generator: torch.Generator
        ) -> Mapping[str, Tensor]:
            batch = context.training_batch(batch_size, generator)
            output, truth = model(batch.input), truth_of(batch, "stages.train")
            return {name: losses[name](output, truth) for name in weights}

        job = TrainingJob(
            name=self.name,
            model=placed(state.teacher, context.device),
            step_losses=step_losses,
            weights=weights,
            validate=context.task.validate,
        )
        result = context.fit(job, self.settings.training)
        return replace(state, teacher=result.model).with_history(self.name, result.history)

    def _weights(self, task: Task) -> dict[str, float]:
        return weighted_terms(task.losses, self.settings.losses, where=_LOSSES)

    def save(self, state: State, folder: Path) -> None:
        """Write the teacher and its losses."""
        save_network(folder / "teacher.safetensors", state.teacher)
        save_history(folder / "history.json", state.histories[self.name])

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the teacher of the files."""
        teacher = load_network(folder / "teacher.safetensors", state.teacher)
        history = load_history(folder / "history.json")
        return replace(state, teacher=teacher).with_history(self.name, history)


def truth_of(batch: Batch, asker: str) -> Tensor:
    """Return the target of a batch.

    Args:
        batch: Of any task.
        asker: The key of the recipe that asks for it, for messages.

    Raises:
        TrainingError: If the task has none.
    """
    if batch.target is None:
        message = f"{asker} needs ground truth, which this task does not have: remove it"
        raise TrainingError(message)
    return batch.target
