"""Decoded images kept in a bounded amount of memory."""

from collections import OrderedDict
from pathlib import Path

from torch import Tensor

from coa_compress.tasks.images import read_levels

DEFAULT_LIMIT_MB = 1536


class ImageCache:
    """Images by path; those not used for longest are dropped when the memory is full.

    Args:
        limit_mb: Most memory for decoded images, in 2**20 bytes. An image larger than all of it
            is read every time.
    """

    def __init__(self, *, limit_mb: float = DEFAULT_LIMIT_MB) -> None:
        self._limit = int(limit_mb * 2**20)
        self._used = 0
        self._images: OrderedDict[tuple[Path, bool], Tensor] = OrderedDict()

    def __getstate__(self) -> dict[str, float]:
        """Return what another process needs: it decodes images itself."""
        return {"limit_mb": self._limit / 2**20}

    def __setstate__(self, state: dict[str, float]) -> None:
        ImageCache.__init__(self, **state)

    @property
    def used_mb(self) -> float:
        """Memory in use, in 2**20 bytes."""
        return self._used / 2**20

    def read(self, path: Path, *, gray: bool = False) -> Tensor:
        """Return what ``read_levels`` returns; the caller must not write into it.

        Raises:
            DataError: If the file cannot be read.
        """
        key = (path, gray)
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        image = read_levels(path, gray=gray)
        if image.nbytes <= self._limit:
            self._images[key] = image
            self._used += image.nbytes
        while self._used > self._limit:
            _, dropped = self._images.popitem(last=False)
            self._used -= dropped.nbytes
        return image
