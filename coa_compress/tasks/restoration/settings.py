"""What can be set about a network that is compressed on images."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from coa_compress.errors import SettingError
from coa_compress.settings import NonNegativeInt, PositiveInt, check_ranges

Colors = Literal["rgb", "y"]
"""What PSNR and SSIM compare: all channels, or the luma of BT.601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorationSettings:
    """Which images a network is compressed and measured on, and how.

    A folder setting is ``builtin``, one folder, several joined by commas, or several in a list. A
    folder holds pairs (``input/`` and ``target/``), or images alone: for these, and for the
    built-in ones, the target is the network's own output.

    Args:
        train: Folders of images to train, score and refit on; a few are held out for validation.
        test: Folders to measure on; None for the images that are held out.
        crop: Side of a crop in pixels of the input.
        example_size: Height and width at which MACs and latency are counted.
        validation_images: How many images checkpoints are compared on.
        calibration_images: Crops that score and refit the network.
        test_images: How many built-in crops are measured.
        max_test_images: Most images measured of each folder, or None for all.
        tile: Images of more than ``tile * tile`` pixels are restored in tiles.
        colors: What PSNR and SSIM compare: ``rgb``, or the luma ``y`` of BT.601, as published
            tables of super-resolution and deraining do.
        border: Pixels on each side of the output that they leave out.

    Raises:
        SettingError: If a value is out of range.
    """

    train: str | tuple[str, ...] = "builtin"
    test: str | tuple[str, ...] | None = None
    crop: Annotated[int, Ge(16)] = 128
    example_size: tuple[int, int] = (128, 128)
    validation_images: PositiveInt = 8
    calibration_images: PositiveInt = 64
    test_images: PositiveInt = 16
    max_test_images: PositiveInt | None = None
    tile: Annotated[int, Ge(128)] = 1024
    colors: Colors = "rgb"
    border: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if min(self.example_size) < 1:
            message = (
                "RestorationSettings.example_size must be a height and a width of at least "
                f"1, got {self.example_size}"
            )
            raise SettingError(message)
