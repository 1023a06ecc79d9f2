"""Measure what each pseudo-label is worth before anything learns from it.

    python -m benchmarks.labels [--data DIR] [--student RUN] [--work runs/adapt]
        [--images N] [--quick] [--json FILE]

On the training pairs with real haze, whose truth no adaptation sees, and on the training
photographs without truth: a label that is nearer to the truth than the output, or shows less haze
at the same distance, is worth learning. RUN is a run folder, a student folder or builtin:teacher.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.records import markdown_table, new_record, read_record, write_record
from coa_compress.adaptation import PSEUDO_LABELS, label_on_the_way
from coa_compress.opening import open_student
from coa_compress.protocols import PseudoLabel
from coa_compress.tasks.dehazing.guidance.labels import LABELS
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask

_JSON = Path(__file__).resolve().parent / "results" / "labels.json"
_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
_PAIRS = "real_pairs"


class Labeled(nn.Module):
    """A network whose output is the pseudo-label that another one makes.

    Args:
        network: Makes it.
        label: How.
    """

    def __init__(self, network: nn.Module, label: PseudoLabel) -> None:
        super().__init__()
        self.network, self.label = network, label

    def forward(self, real: Tensor) -> Tensor:
        """Return the label."""
        return label_on_the_way(self.network, real, self.label, strength=1.0)


def main(given: Sequence[str] | None = None) -> None:
    """Measure the labels that the record lacks and write it.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    rows = list(read_record(arguments.json)["rows"]) if arguments.json.exists() else []
    network, task = open_student(arguments.student)[0].eval(), _task(arguments)
    for name, label in {**PSEUDO_LABELS, **LABELS}.items():
        if name not in [row["label"] for row in rows]:
            rows.append({"label": name, "measures": task.measure(Labeled(network, label))})
            write_record(arguments.json, {**new_record("labels", given), "rows": rows})
    print(render(read_record(arguments.json)))


def render(record: Mapping[str, Any]) -> str:
    """Return the rows of a record as a Markdown table."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    names = list(rows[0]["measures"])
    unlabelled = [name for name in names if name not in {"psnr_db", "ssim"}]
    head = ["label", "PSNR dB, real pairs", "SSIM, real pairs"]
    head += [f"{name.replace('_', ' ')}, real photos" for name in unlabelled]
    lines = []
    for row in rows:
        found = row["measures"]
        cells = [f"{found['psnr_db'][_PAIRS]:.2f}", f"{found['ssim'][_PAIRS]:.3f}"]
        lines.append([row["label"], *cells, *(f"{found[n]['real']:.3f}" for n in unlabelled)])
    return f"{markdown_table(head, lines)}\n\nMade by `{record['command']}`."


def _task(arguments: argparse.Namespace) -> DehazingTask:
    folder = arguments.work / "labels"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_PAIRS, "real_hazy"):
        link = folder / name
        if not link.exists():
            link.symlink_to((arguments.data / "train" / name).resolve())
    return DehazingTask(DehazingSettings(test=str(folder), max_test_images=arguments.images))


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.labels", description=__doc__)
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--student", default="builtin:teacher")
    parser.add_argument("--work", type=Path, default=Path("runs/adapt"))
    parser.add_argument("--images", type=int, help="most pairs, and most photographs")
    parser.add_argument("--json", type=Path, default=_JSON)
    parser.add_argument("--quick", action="store_true", help="two pairs, two photographs")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.images = 2
        if arguments.json == _JSON:
            arguments.json = _JSON.with_name("labels-quick.json")
    return arguments


if __name__ == "__main__":
    main()
