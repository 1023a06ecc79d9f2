"""Pictures as data URIs, so that the page is one file."""

import base64
import io

from torch import Tensor, uint8

from coa_compress.errors import DataError

_QUALITY = 88


def data_uri(image: Tensor) -> str:
    """Return an image as a JPEG data URI.

    Args:
        image: uint8, shape ``(height, width, 3)``.

    Raises:
        DataError: If type or shape is another.

    >>> import torch
    >>> data_uri(torch.zeros(8, 8, 3, dtype=torch.uint8))[:27]
    'data:image/jpeg;base64,/9j/'
    """
    if image.dtype != uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.numel():
        message = (
            "a picture must be uint8 of shape (height, width, 3), "
            f"got {image.dtype} of shape {tuple(image.shape)}"
        )
        raise DataError(message)
    # late: matplotlib takes long to import, and only a report needs it
    from matplotlib.image import imsave

    with io.BytesIO() as stream:
        pixels = image.detach().cpu().contiguous().numpy()
        imsave(stream, pixels, format="jpg", pil_kwargs={"quality": _QUALITY})
        return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
