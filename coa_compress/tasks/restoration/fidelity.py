"""How close what a network makes of whole images is to what it should make."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from coa_compress.artifacts import Picture
from coa_compress.protocols import Progress
from coa_compress.tasks.measures import capped_psnr_db, in_8_bits, ssim
from coa_compress.tasks.pictures import picture_row
from coa_compress.tasks.restoration.settings import Colors
from coa_compress.tasks.tiling import restore_image

_RGB = 3
# the luma of BT.601 in its studio range, as in published tables
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_BLACK = 16 / 255

Loaded = tuple[Tensor, Tensor | None]
"""A whole image and its target."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Runs networks on whole images and compares what comes out, rounded to 8 bits, with targets.

    Args:
        tile: Images of more than ``tile * tile`` pixels are restored in tiles.
        colors: ``rgb``, or ``y`` to compare the luma of BT.601.
        border: Pixels on each side that are not compared.
    """

    tile: int
    colors: Colors
    border: int

    @property
    def description(self) -> str:
        """What is compared, in words; nothing for the whole image.

        >>> Fidelity(tile=1024, colors="y", border=4).description
        'of the luma of BT.601, without 4 pixels at each side'
        """
        parts = ["of the luma of BT.601"] if self.colors == "y" else []
        parts += [f"without {self.border} pixels at each side"] if self.border else []
        return ", ".join(parts)

    def measure(
        self, model: nn.Module, images: Iterable[Loaded], progress: Progress, count: int
    ) -> dict[str, float]:
        """Return the mean PSNR in dB and SSIM of images that have targets.

        Args:
            model: The network.
            images: Inputs and targets, shape ``(channels, height, width)``.
            progress: Told after each image.
            count: How many there are.
        """
        values: list[dict[str, float]] = []
        for given, target in images:
            if target is None:
                continue
            restored, truth = self._compared(self._restored(model, given)), self._compared(target)
            values.append(
                {
                    "psnr_db": capped_psnr_db(restored, truth),
                    "ssim": float(ssim(restored[None], truth[None])),
                }
            )
            progress(len(values), count, {"psnr_db": values[-1]["psnr_db"]})
        return {name: sum(v[name] for v in values) / len(values) for name in values[0]}

    def psnr_db(self, model: nn.Module, images: Iterable[Loaded]) -> float:
        """Return the mean PSNR in dB of images that have targets."""
        values = [
            self.psnr_of(self._restored(model, given), target)
            for given, target in images
            if target is not None
        ]
        return sum(values) / len(values)

    def picture(
        self, title: str, models: Mapping[str, nn.Module], given: Tensor, target: Tensor | None
    ) -> Picture:
        """Return a row for the report: the input, what each model makes of it, the target."""
        restored = {name: self._restored(model, given) for name, model in models.items()}
        return picture_row(title, {"input": given, **restored}, target, psnr_db=self.psnr_of)

    def psnr_of(self, restored: Tensor, target: Tensor) -> float:
        """Return the PSNR in dB of one image, at most 100 dB."""
        return capped_psnr_db(self._compared(restored), self._compared(target))

    def _compared(self, image: Tensor) -> Tensor:
        edge = self.border
        inside = image[:, edge : image.shape[1] - edge, edge : image.shape[2] - edge]
        if self.colors == "rgb" or inside.shape[0] != _RGB:
            return inside
        weights = inside.new_tensor(_LUMA)[:, None, None]
        return (weights * inside).sum(dim=0, keepdim=True) + _BLACK

    def _restored(self, model: nn.Module, given: Tensor) -> Tensor:
        return in_8_bits(restore_image(model, given, tile=self.tile))
