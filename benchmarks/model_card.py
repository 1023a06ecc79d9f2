"""What a network makes of folders of pairs, beside the hazy input: the model card's table.

python -m benchmarks.model_card DIR [--model builtin:teacher] [--json FILE] [--card FILE]
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coa_compress.atomic import write_atomic
from coa_compress.compressor import open_student
from coa_compress.errors import ModelError
from coa_compress.protocols import Deployable, no_progress
from coa_compress.provenance import best_device, commit, machine, versions

_MARKERS = re.compile(r"(<!-- table: figures -->\n).*?(<!-- end table -->)", re.DOTALL)
_FILE = Path("benchmarks/results/teacher.json")


class _Unchanged(nn.Module):
    """A network that returns its input: the row of the hazy images."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, image: Any) -> Any:
        return image


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="builtin:teacher")
    parser.add_argument("--json", type=Path, default=_FILE)
    parser.add_argument("--card", type=Path, help="replace the table in this file")
    arguments = parser.parse_args()
    model, task = open_student(arguments.model)
    if not isinstance(task, Deployable):
        message = f"{arguments.model} has no task that works on folders"
        raise ModelError(message)
    networks = {"hazy input": _Unchanged(), arguments.model: model}
    measures = {
        name: task.evaluate_folder(network, arguments.data, no_progress)
        for name, network in networks.items()
    }
    content = {
        "schema_version": 1,
        "benchmark": "model_card",
        "commit": commit(),
        "versions": versions(),
        **machine(best_device()),
        "measures": measures,
    }
    write_atomic(arguments.json, json.dumps(content, indent=1) + "\n")
    table = render(measures)
    print(table)
    if arguments.card is not None:
        text = arguments.card.read_text(encoding="utf-8")
        write_atomic(arguments.card, _MARKERS.sub(rf"\g<1>{table}\n\g<2>", text))


def render(measures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return PSNR / SSIM by network and split as a Markdown table."""
    first = next(iter(measures.values()))
    splits = list(first["psnr_db"])
    lines = [["PSNR dB / SSIM", *splits], ["---"] * (len(splits) + 1)]
    for name, found in measures.items():
        cells = [f"{found['psnr_db'][s]:.2f} / {found['ssim'][s]:.3f}" for s in splits]
        lines.append([name, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
