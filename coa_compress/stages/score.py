"""Score the channels of the teacher."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from coa_compress.artifacts import Batch
from coa_compress.checkpoint import load_tensors, save_tensors
from coa_compress.scoring.catalog import SCORERS
from coa_compress.stages.state import Context, State


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    """How channels are scored.

    Args:
        scorer: Name of a scorer, see ``coa-compress list scorers``.
    """

    scorer: str = "taylor"

    def __post_init__(self) -> None:
        SCORERS.get(self.scorer)


class Score:
    """From the teacher to the importance of each channel."""

    name = "score"
    Settings = ScoreSettings
    needs: tuple[str, ...] = ()

    def __init__(self, settings: ScoreSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Raise a ``StructureError`` if the teacher has no channels that can be cut."""
        context.structure(state.teacher)

    def run(self, state: State, context: Context) -> State:
        """Return the state with a score for each channel."""
        structure = context.structure(state.teacher)
        scorer = SCORERS.get(self.settings.scorer)
        teacher = state.teacher.to(context.device)
        scores = scorer(teacher, structure.groups, context.calibration(), calibration_loss)
        return replace(state, scores=scores, scorer=self.settings.scorer)

    def save(self, state: State, folder: Path) -> None:
        """Write the scores."""
        save_tensors(folder / "scores.safetensors", state.scores or {})

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the scores of the file."""
        scores = load_tensors(folder / "scores.safetensors")
        return replace(state, scores=scores, scorer=self.settings.scorer)


def calibration_loss(output: Tensor, batch: Batch) -> Tensor:
    """Return the mean squared error against the truth, or the mean square where there is none."""
    if batch.target is None:
        return output.square().mean()
    return torch.nn.functional.mse_loss(output, batch.target)
