"""The measures of an image without its truth, with the parameters that they take."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from coa_compress.tasks.dehazing.dark_channel import dark_channel_density
from coa_compress.tasks.dehazing.fade import FadeParameters, fade
from coa_compress.tasks.dehazing.image_statistics import Gaussian
from coa_compress.tasks.dehazing.niqe import niqe
from coa_compress.tasks.dehazing.reference_statistics import (
    own_fade_parameters,
    own_niqe_reference,
    read_fade_parameters,
    read_niqe_reference,
)

HAZE = ("fade", "dark_channel_density")
"""Measures of haze, the leading one first; lower is clearer."""

QUALITY = ("niqe",)
"""Measures of quality; lower is better."""


_EXPLAINED = {
    "fade": "Perceptual fog density (Choi et al. 2015), told from the image alone, so that no "
    "ground truth is needed; lower is clearer.",
    "dark_channel_density": "Share of light that haze has replaced, from 0 to 1, by the dark "
    "channel prior (He et al. 2011); white surfaces count as haze; lower is clearer.",
    "niqe": "Distance from the statistics of natural photographs (Mittal et al. 2013), told from "
    "the image alone; lower is more natural.",
}
_OWN = " With the statistics of this package: values do not compare with published ones."


@dataclass(frozen=True, slots=True, eq=False)
class NoReference:
    """Measures images without their truth.

    Args:
        fade: What patches without and with fog look like; our own statistics by default.
        niqe: What natural images look like; our own statistics by default.
        published: Which of both are not our own.
    """

    fade: FadeParameters = field(default_factory=own_fade_parameters)
    niqe: Gaussian = field(default_factory=own_niqe_reference)
    published: frozenset[str] = frozenset()

    @property
    def explanations(self) -> dict[str, str]:
        """One sentence on what each measure means, and whose parameters it takes."""
        own = {"fade", "niqe"} - self.published
        return {name: text + (_OWN if name in own else "") for name, text in _EXPLAINED.items()}

    def measure(self, image: Tensor) -> dict[str, float]:
        """Return FADE, dark-channel density and NIQE of an image; lower is better in all.

        Args:
            image: Shape ``(3, height, width)``, values in ``[0, 1]``, any size.
        """
        return {
            "fade": fade(image, self.fade),
            "dark_channel_density": dark_channel_density(image),
            "niqe": niqe(image, self.niqe),
        }

    def digest(self) -> str:
        """Return what differs once the parameters differ."""
        found = hashlib.sha256()
        for gaussian in (self.fade.clear, self.fade.foggy, self.niqe):
            for values in (gaussian.mean, gaussian.covariance):
                found.update(values.numpy().tobytes())
        return found.hexdigest()[:16]


def no_reference(fade_parameters: str | None, niqe_parameters: str | None) -> NoReference:
    """Return the measures with the parameters of files, or with our own where there is none.

    Args:
        fade_parameters: Folder of the two files of the authors of FADE, or None.
        niqe_parameters: File of the authors of NIQE, or None.

    Raises:
        DataError: If a file is missing or holds something else.

    >>> import torch
    >>> sorted(no_reference(None, None).measure(torch.rand(3, 32, 32)))
    ['dark_channel_density', 'fade', 'niqe']
    """
    found = NoReference()
    if fade_parameters is not None:
        folder = Path(fade_parameters).expanduser()
        found = replace(found, fade=read_fade_parameters(folder), published=frozenset({"fade"}))
    if niqe_parameters is not None:
        reference = read_niqe_reference(Path(niqe_parameters).expanduser())
        found = replace(found, niqe=reference, published=found.published | {"niqe"})
    return found
