"""Priors by words, made by name when a recipe asks for them."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from coa_compress.tasks.dehazing.guidance.clip import ClipEncoder
from coa_compress.tasks.dehazing.guidance.prompts import load_prompts
from coa_compress.tasks.dehazing.guidance.text import (
    ImageTextEncoder,
    direction_loss,
    prompt_loss,
)

Prior = Callable[[Tensor, Tensor], Tensor]
"""A scalar from 0 of outputs and inputs; lower is better."""


def text_priors(clip: str, prompts: str = "") -> dict[str, Prior]:
    """Return the priors of an encoder of ``open_clip``, by name.

    Args:
        clip: Architecture and weights, such as ``ViT-B-32:laion2b_s34b_b79k``.
        prompts: A file of learned prompts, or empty.

    Raises:
        SettingError: If ``open_clip`` is not installed.
        WeightsError: If the prompts cannot be read.
    """
    return priors_of(ClipEncoder(clip), prompts)


def priors_of(encoder: ImageTextEncoder, prompts: str = "") -> dict[str, Prior]:
    """Return the priors of any encoder: ``clip_direction``, and ``clip_prompts`` where given.

    Args:
        encoder: Embeds images and texts.
        prompts: A file of learned prompts, or empty.
    """
    priors: dict[str, Prior] = {"clip_direction": direction_loss(encoder)}
    if prompts:
        contexts = load_prompts(Path(prompts).expanduser(), width=encoder.width)
        priors["clip_prompts"] = prompt_loss(encoder, contexts)
    return priors
