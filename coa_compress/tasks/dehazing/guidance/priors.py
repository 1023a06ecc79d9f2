"""Every prior on dehazed real images by name."""

from collections.abc import Callable

from torch import Tensor

from coa_compress.tasks.dehazing.guidance.channels import bright_channel_loss, dark_channel_loss
from coa_compress.tasks.dehazing.guidance.color import (
    attenuation_loss,
    color_loss,
    contrast_loss,
    saturation_loss,
    total_variation_loss,
)
from coa_compress.tasks.dehazing.guidance.rehazing import rehaze_loss
from coa_compress.tasks.dehazing.guidance.sky import sky_loss

PRIORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dark_channel": dark_channel_loss,
    "bright_channel": bright_channel_loss,
    "attenuation": attenuation_loss,
    "contrast": contrast_loss,
    "saturation": saturation_loss,
    "color": color_loss,
    "sky": sky_loss,
    "total_variation": total_variation_loss,
    "rehaze": rehaze_loss,
}
"""Every prior by name: a scalar from 0 of outputs and inputs; lower is better."""
