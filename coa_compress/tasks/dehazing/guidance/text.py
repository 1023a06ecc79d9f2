"""Guidance by words: what an image-text encoder such as CLIP calls hazy and clear."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

HAZY = ("a photo with haze", "a foggy photo", "a washed out photo with low contrast")
"""What is to be left, in fixed words."""
CLEAR = ("a clear photo", "a photo on a clear day", "a sharp photo with natural colors")
"""What is to be reached, in fixed words."""

_SCALE = 100.0
_EPSILON = 1e-6


class ImageTextEncoder(Protocol):
    """A frozen encoder that puts images and texts into one space.

    Args:
        width: Size of a token of the text encoder.
    """

    width: int

    def images(self, images: Tensor) -> Tensor:
        """Return embeddings, shape ``(batch, features)``, with gradient.

        Args:
            images: Shape ``(batch, 3, height, width)``, values in about ``[0, 1]``, any size.
        """

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings of sentences, shape ``(prompts, features)``, without gradient."""

    def tokens(self, contexts: Tensor) -> Tensor:
        """Return embeddings of learned sentences, shape ``(prompts, features)``, with gradient.

        Args:
            contexts: Tokens, shape ``(prompts, length, width)``.
        """


def direction_loss(encoder: ImageTextEncoder) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a prior: 1 - cosine of the way from input to output and that from hazy to clear.

    ``1 - cos(V_out - V_in, T_clear - T_hazy)`` needs no learned prompts (Gal et al. 2021,
    StyleGAN-NADA, arXiv:2108.00946, eq. 3; for haze in BiLaLoRA). Each T is the mean over a few
    fixed prompts.

    Args:
        encoder: Embeds images and prompts; its prompts are embedded once.
    """
    with torch.no_grad():
        way = _mean_direction(encoder.texts(CLEAR)) - _mean_direction(encoder.texts(HAZY))

    def loss(output: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            start = functional.normalize(encoder.images(real), dim=1)
        moved = functional.normalize(encoder.images(output), dim=1) - start
        cosine = functional.cosine_similarity(moved, way.to(moved), dim=1, eps=_EPSILON)
        return (1 - cosine).mean()

    return loss


def prompt_loss(encoder: ImageTextEncoder, contexts: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a prior: how likely an output is hazy, told by a pair of learned prompts.

    ``softmax(100 cos(V_out, T_k))[hazy]``, as in the real-domain stage of CoA (Ma et al., CVPR
    2025) with prompts learned as in CLIP-LIT (Liang et al. 2023, arXiv:2303.17569).

    Args:
        encoder: Embeds images and prompts.
        contexts: Tokens of the hazy and of the clear prompt, shape ``(2, length, width)``.
    """
    with torch.no_grad():
        texts = encoder.tokens(contexts)

    def loss(output: Tensor, real: Tensor) -> Tensor:
        del real
        return prompt_logits(encoder.images(output), texts.to(output)).softmax(dim=1)[:, 0].mean()

    return loss


def prompt_logits(images: Tensor, texts: Tensor) -> Tensor:
    """Return 100 times the cosine of each image and each text, shape ``(images, texts)``."""
    return _SCALE * functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T


def _mean_direction(texts: Tensor) -> Tensor:
    mean = functional.normalize(texts, dim=1).mean(dim=0, keepdim=True)
    return functional.normalize(mean, dim=1)
