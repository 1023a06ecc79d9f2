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
        student, note = _pruned(subject, keep, importance, scope, subject.outputs), ""
    except TimeoutError:
        raise
    except Exception:  # noqa: BLE001  a peer may raise anything; it is tried again
        student = _pruned(subject, keep, importance, scope, subject.outputs + subject.shuffled)
        note = f"told by hand to leave {', '.join(subject.shuffled)}"
    return Pruned(student, matched_cut(subject.teacher, student), note=note)


def _pruned(
    subject: Subject, keep: float, importance: str, scope: str, left: Sequence[str]
) -> nn.Module:
    import torch_pruning as tp

    model = copy.deepcopy(subject.teacher)
    scorer = _scorer(tp, importance)
    pruner = tp.pruner.BasePruner(
        model,
        subject.example,
        importance=scorer,
        global_pruning=scope != "local",
        isomorphic=scope == "isomorphic",
        pruning_ratio=_MOST,
        max_pruning_ratio=_MOST,
        iterative_steps=_STEPS,
        ignored_layers=[model.get_submodule(path) for path in left],
        round_to=_ROUND_TO,
        # its defaults are mutable and shared between pruners
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    limit = keep * count_macs(subject.teacher, subject.example)
    for _ in range(_STEPS):
        _accumulate_(model, scorer, importance, subject)
        pruner.step()
        model.zero_grad(set_to_none=True)
        if count_macs(model, subject.example) <= limit:
            break
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
