"""FastNAS of NVIDIA ModelOpt, as its manual calls it."""

import copy
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.peers.matching import matched_cut
from benchmarks.peers.subject import Pruned, Subject, loss

_ROUND_TO = 8


def prune_by_fastnas(subject: Subject, keep: float) -> Pruned:
    """Return a student of FastNAS, which scores by minus the loss on the calibration images.

    It scores every width of every layer before it searches, whatever the budget, and keeps the
    scores in a file: the next budget of the same subject finds them there.

    Args:
        subject: What is pruned.
        keep: Fraction of the MACs that may be kept.

    Raises:
        ValueError: If its smallest network is above the budget, in one line.
        Exception: Whatever else it raises.
    """
    import modelopt.torch.prune as mtp
    from modelopt.torch.prune.fastnas import FastNASConfig

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            values = [float(loss(model(batch.input), batch)) for batch in subject.batches]
        return -sum(values) / len(values)

    config = FastNASConfig().model_dump()
    for rules in config.values():
        for rule in (rules or {}).values():
            if rule and "channel_divisor" in rule:
                rule["channel_divisor"] = _ROUND_TO
    key = ("modelopt:fastnas",)
    if key not in subject.loops:
        subject.loops[key] = TemporaryDirectory()
    scores: TemporaryDirectory[str] = subject.loops[key]
    try:
        student, _ = mtp.prune(
            model=copy.deepcopy(subject.teacher),
            mode=[("fastnas", config)],
            constraints={"flops": f"{100 * keep:g}%"},
            dummy_input=subject.example,
            config={
                "score_func": score,
                "checkpoint": str(Path(scores.name) / "search.pth"),
                "data_loader": None,
                "collect_func": lambda batch: batch,
                "verbose": False,
            },
        )
    except ValueError as error:
        raise ValueError(_in_one_line(str(error))) from error
    return Pruned(student.eval(), matched_cut(subject.teacher, student))


def _in_one_line(message: str) -> str:
    """Return what its table of constraints says, or the message where there is no such table."""
    flops = re.findall(r"flops\W+([\d.]+[KMBT]?)", message)
    if len(flops) < 2:
        return message
    least, bound = flops[:2]
    return f"its smallest network has {least} flops, and {bound} are asked"
