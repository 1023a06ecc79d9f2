"""What a network makes of folders of pairs, beside the hazy input: the model card's table.

    python -m benchmarks.model_card DIR [--model builtin:teacher] [--json FILE]

`python -m benchmarks.tables` puts the table into the model card.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.records import markdown_table, new_record, write_record
from coa_compress.errors import ModelError
from coa_compress.opening import open_student
from coa_compress.protocols import Deployable, no_progress

_FILE = Path("benchmarks/results/teacher.json")


class Unchanged(nn.Module):
    """A network that returns its input: the row of the hazy images."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, image: Any) -> Any:
        """Return the image."""
        return image


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="builtin:teacher")
    parser.add_argument("--json", type=Path, default=_FILE)
    arguments = parser.parse_args()
    model, task = open_student(arguments.model)
    if not isinstance(task, Deployable):
        message = f"{arguments.model} has no task that works on folders"
        raise ModelError(message)
    networks = {"hazy input": Unchanged(), arguments.model: model}
    measures = {
        name: task.evaluate_folder(network, arguments.data, no_progress)
        for name, network in networks.items()
    }
    record = {**new_record("model_card"), "measures": measures}
    write_record(arguments.json, record)
    print(render(record))


def render(record: Mapping[str, Any]) -> str:
    """Return PSNR / SSIM by network and split as a Markdown table."""
    measures: Mapping[str, Mapping[str, Mapping[str, float]]] = record["measures"]
    splits = list(next(iter(measures.values()))["psnr_db"])
    rows = [
        [name, *(f"{found['psnr_db'][s]:.2f} / {found['ssim'][s]:.3f}" for s in splits)]
        for name, found in measures.items()
    ]
    return markdown_table(["PSNR dB / SSIM", *splits], rows)


if __name__ == "__main__":
    main()
