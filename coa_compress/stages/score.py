"""Score the channels of the teacher."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from coa_compress.artifacts import Batch, SensitivityCurve
from coa_compress.checkpoint import load_tensors, save_tensors
from coa_compress.copying import placed
from coa_compress.scoring.catalog import SCORERS
from coa_compress.scoring.curves import CurvePlan, measure_curves
from coa_compress.settings import NonNegativeInt, check_ranges
from coa_compress.stages.files import read_json, write_json
from coa_compress.stages.state import Context, State, groups_so_far, network_so_far


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    """How channels are scored.

    Args:
        scorer: Name of a scorer, see ``coa-compress list scorers``.
        curves: Widths of each group at which the loss of cutting it alone is measured; 0 for none.
        refit_curves: Measure it after the closed-form refit of the layers that read the group.

    Raises:
        SettingError: If ``curves`` is below 0.
        RegistryError: If there is no such scorer.
    """

    scorer: str = "sensitivity"
    curves: NonNegativeInt = 0
    refit_curves: bool = True

    def __post_init__(self) -> None:
        check_ranges(self)
        SCORERS.get(self.scorer)


def squared_error(output: Tensor, batch: Batch) -> Tensor:
    """Return the mean squared error, or the mean square of the output without ground truth.

    >>> float(squared_error(torch.tensor([2.0]), Batch(torch.zeros(1), torch.tensor([5.0]))))
    9.0
    """
    if batch.target is None:
        return output.square().mean()
    return torch.nn.functional.mse_loss(output, batch.target)


class Score:
    """From the teacher, or the student of an earlier round, to what each channel is worth."""

    name = "score"
    Settings = ScoreSettings
    needs: tuple[str, ...] = ()

    def __init__(self, settings: ScoreSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Raise a ``StructureError`` if the teacher has no channels that can be cut."""
        context.structure(state.teacher)

    def run(self, state: State, context: Context) -> State:
        """Return the state with a score for each channel, and curves where they are asked for."""
        structure = context.structure(state.teacher)

        scorer = SCORERS.get(self.settings.scorer)
        network = placed(network_so_far(state), context.device)
        batches = context.calibration()
        scores = scorer(network, groups_so_far(state, structure.groups), batches, squared_error)
        state = replace(state, scores=scores, curves=None, scorer=self.settings.scorer)
        if not self.settings.curves:
            return state
        curves = measure_curves(
            network,
            structure,
            scores,
            batches,
            plan=CurvePlan(n_widths=self.settings.curves, refit=self.settings.refit_curves),
            progress=context.progress,
        )
        return replace(state, curves=curves)

    def save(self, state: State, folder: Path) -> None:
        """Write the scores and the curves."""
        save_tensors(folder / "scores.safetensors", state.scores or {})
        if self.settings.curves:
            found = state.curves or {}
            curves = {name: {"widths": c.widths, "losses": c.losses} for name, c in found.items()}
            write_json(folder / "curves.json", {"curves": curves})

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the scores and the curves of the files."""
        scores = load_tensors(folder / "scores.safetensors")
        state = replace(state, scores=scores, curves=None, scorer=self.settings.scorer)
        if not self.settings.curves:
            return state
        found = read_json(folder / "curves.json")["curves"]
        curves = {
            name: SensitivityCurve(tuple(curve["widths"]), tuple(curve["losses"]))
            for name, curve in found.items()
        }
        return replace(state, curves=curves)
