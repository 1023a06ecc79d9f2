"""Networks of the committed benchmarks, to hold those of a run against."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from coa_compress.artifacts import Reference


def known_networks(digests: Mapping[str, str]) -> list[Reference]:
    """Return the networks that were measured on the images of some test splits.

    Args:
        digests: What identifies the images, by the name of the split.

    Returns:
        Networks with their measures on these splits alone; empty where none was measured.

    >>> known_networks({"builtin": "of other images"})
    []
    """
    text = files("coa_compress.tasks.dehazing").joinpath("references.json").read_text("utf-8")
    found: Mapping[str, Any] = json.loads(text)
    same = {split for split, digest in digests.items() if found["splits"].get(split) == digest}
    networks = [_reference(network, same) for network in found["networks"]]
    return [network for network in networks if network.measures]


def _reference(found: Mapping[str, Any], splits: set[str]) -> Reference:
    measures = {
        measure: {split: value for split, value in by_split.items() if split in splits}
        for measure, by_split in found["measures"].items()
    }
    return Reference(
        name=found["name"],
        params=found["params"],
        macs=found["macs"],
        example_size=tuple(found["example_size"]),
        measures={measure: by_split for measure, by_split in measures.items() if by_split},
    )
