"""Published networks with their published weights, which are not part of this project."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import nn

from benchmarks.networks.dehazeformer import DehazeFormerT
from benchmarks.networks.gcanet import GCANet
from coa_compress.checkpoint import load_weights_
from coa_compress.errors import DataError
from coa_compress.registry import did_you_mean


@dataclass(frozen=True, slots=True)
class Published:
    """A network of the literature.

    Args:
        build: Makes it without its weights.
        weights: Where its weights lie in the data folder.
    """

    build: Callable[[], nn.Module]
    weights: str


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "gcanet": Published(GCANet, "weights/wacv_gcanet_dehaze.pth"),
        "dehazeformer_t": Published(DehazeFormerT, "weights/dehazeformer_t_addskip.pth"),
    }
)
"""Every network here, by name."""


def default_data() -> Path | None:
    """Return ``shared/data`` beside the repository, or None where there is none."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return beside if beside.is_dir() else None


def load_published(name: str, data: Path) -> nn.Module:
    """Return a published network with its weights, in evaluation mode.

    Args:
        name: A key of ``PUBLISHED``.
        data: The folder that holds ``weights/``.

    Raises:
        DataError: If there is no network of that name.
        WeightsError: If the file is missing or does not fit.
    """
    if name not in PUBLISHED:
        message = f"no published network {name!r}: {did_you_mean(name, PUBLISHED)}"
        raise DataError(message)
    network = PUBLISHED[name].build()
    load_weights_(network, data / PUBLISHED[name].weights)
    return network.eval()
