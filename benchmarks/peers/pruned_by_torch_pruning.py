"""Torch-Pruning in the loop that its users write (Fang et al. 2023, arXiv:2301.12900)."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.peers.matching import matched_cut
from benchmarks.peers.subject import Pruned, Subject, loss
from coa_compress.profiling.counting import count_macs

_STEPS = 40
_MOST = 0.9
_ROUND_TO = 8
_PROBE = 96


def prune_by_torch_pruning(subject: Subject, keep: float, *, importance: str, scope: str) -> Pruned:
    """Return a student of Torch-Pruning.

    It takes a fraction of channels and no MACs, so that it is run in small steps until the MACs
    are within the budget. It is told which modules write the output. When that fails, it is also
    told which modules lie before a pixel shuffle or a split into parts, which the row then says.

    Args:
        subject: What is pruned.
        keep: Fraction of the MACs that may be kept.
        importance: ``magnitude``, ``taylor`` or ``hessian``.
        scope: ``local``, ``global`` or ``isomorphic``.

    Raises:
        Exception: Whatever it raises.
    """
    try:
        student, note = _within(subject, keep, importance, scope, subject.outputs), ""
    except TimeoutError:
        raise
    except Exception:  # noqa: BLE001  a peer may raise anything; it is tried again
        left = subject.outputs + subject.shuffled
        student = _within(subject, keep, importance, scope, left)
        note = f"told by hand to leave {', '.join(subject.shuffled)}"
    return Pruned(student, matched_cut(subject.teacher, student), note=note)


class _Loop:
    """The loop over one teacher. It does not know the budget: a smaller one goes on with it.

    Args:
        subject: What is pruned.
        importance: Kind of importance.
        scope: Among which channels they are compared.
        left: Paths of the modules that are left whole.
    """

    def __init__(self, subject: Subject, importance: str, scope: str, left: Sequence[str]) -> None:
        import torch_pruning as tp

        self._subject, self._importance = subject, importance
        self._model = copy.deepcopy(subject.teacher)
        self._scorer = _scorer(tp, importance)
        self._pruner = tp.pruner.BasePruner(
            self._model,
            subject.example,
            importance=self._scorer,
            global_pruning=scope != "local",
            isomorphic=scope == "isomorphic",
            pruning_ratio=_MOST,
            max_pruning_ratio=_MOST,
            iterative_steps=_STEPS,
            ignored_layers=[self._model.get_submodule(path) for path in left],
            round_to=_ROUND_TO,
            # its defaults are mutable and shared between pruners
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        self._error: Exception | None = None
        self._passed: list[tuple[float, nn.Module]] = []

    def within(self, macs: float) -> nn.Module:
        """Return the network after the first step that is within, or after the last."""
        while len(self._passed) < _STEPS and all(found > macs for found, _ in self._passed):
            self._step()
        return next((model for found, model in self._passed if found <= macs), self._passed[-1][1])

    def _step(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            _accumulate_(self._model, self._scorer, self._importance, self._subject)
            self._pruner.step()
            self._model.zero_grad(set_to_none=True)
            macs = count_macs(self._model, self._subject.example)
        except Exception as error:
            # what is left of the network is of no use to a later budget either
            self._error = error
            raise
        self._passed.append((macs, copy.deepcopy(self._model)))


def _within(
    subject: Subject, keep: float, importance: str, scope: str, left: tuple[str, ...]
) -> nn.Module:
    key = (importance, scope, *left)
    if key not in subject.loops:
        subject.loops[key] = _Loop(subject, importance, scope, left)
    limit = keep * count_macs(subject.teacher, subject.example)
    loop: _Loop = subject.loops[key]
    model = copy.deepcopy(loop.within(limit))
    with torch.no_grad():
        output = model(torch.zeros(1, 3, _PROBE, _PROBE))
    if output.shape != (1, 3, _PROBE, _PROBE) or not math.isfinite(float(output.sum())):
        message = f"the pruned network makes {tuple(output.shape)} of an image"
        raise RuntimeError(message)
    return model.eval()


def _scorer(tp: Any, importance: str) -> Any:
    kinds = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance,
        "hessian": tp.importance.GroupHessianImportance,
    }
    return kinds[importance]()


def _accumulate_(model: nn.Module, scorer: Any, importance: str, subject: Subject) -> None:
    """Do what its manual asks for before a step."""
    model.zero_grad(set_to_none=True)
    if importance == "taylor":
        for batch in subject.batches:
            (loss(model(batch.input), batch) / len(subject.batches)).backward()  # type: ignore[no-untyped-call]
    if importance == "hessian":
        scorer.zero_grad()
        for batch in subject.batches:
            for number in range(len(batch.input)):
                model.zero_grad()
                output = model(batch.input[number : number + 1])
                target = batch.target[number : number + 1]  # type: ignore[index]
                nn.functional.mse_loss(output, target).backward()  # type: ignore[no-untyped-call]
                scorer.accumulate_grad(model)
