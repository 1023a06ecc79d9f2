"""How stages keep networks, losses and pictures in their folders."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.artifacts import History, Picture
from coa_compress.atomic import write_atomic
from coa_compress.checkpoint import load_tensors, load_weights_, save_tensors
from coa_compress.copying import copied
from coa_compress.errors import WeightsError


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically, for people to read."""
    write_atomic(path, json.dumps(content, indent=1))


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        WeightsError: If it cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        message = f"cannot read {path} ({error}): run again with --no-resume"
        raise WeightsError(message) from None


def save_network(path: Path, network: nn.Module) -> None:
    """Write the weights of a network whose shape is known elsewhere."""
    save_tensors(path, network.state_dict())


def load_network(path: Path, like: nn.Module) -> nn.Module:
    """Return a copy of a network with the weights of a file, in evaluation mode."""
    network = copied(like)
    load_weights_(network, path)
    return network.eval()


def save_history(path: Path, history: History) -> None:
    """Write the losses of a training stage."""
    write_json(path, asdict(history))


def load_history(path: Path) -> History:
    """Return the losses of a training stage."""
    found = read_json(path)
    return History(
        tuple(found["steps"]),
        {name: tuple(values) for name, values in found["losses"].items()},
        tuple((int(step), float(value)) for step, value in found["validation"]),
    )


def save_pictures(folder: Path, pictures: "list[Picture] | tuple[Picture, ...]") -> None:
    """Write rows of images."""
    tensors: dict[str, Tensor] = {}
    rows = []
    for row, picture in enumerate(pictures):
        tensors.update({f"{row}/{n}": image for n, image in picture.images.items()})
        rows.append(
            {
                "title": picture.title,
                "columns": list(picture.images),
                "captions": dict(picture.captions),
            }
        )
    save_tensors(folder / "pictures.safetensors", tensors or {"none": torch.zeros(1)})
    write_json(folder / "pictures.json", {"rows": rows})


def load_pictures(folder: Path) -> tuple[Picture, ...]:
    """Return rows of images."""
    tensors = load_tensors(folder / "pictures.safetensors")
    rows = read_json(folder / "pictures.json")["rows"]
    return tuple(
        Picture(row["title"], {n: tensors[f"{i}/{n}"] for n in row["columns"]}, row["captions"])
        for i, row in enumerate(rows)
    )
