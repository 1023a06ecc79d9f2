"""Prompts that tell hazy from clear, learned from unpaired images, and their file."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from coa_compress.atomic import write_atomic
from coa_compress.errors import WeightsError
from coa_compress.tasks.dehazing.guidance.text import ImageTextEncoder, prompt_logits

_NAME = "contexts"
_START = 0.02

Images = Callable[[torch.Generator], Tensor]
"""Draws a batch of images, shape ``(batch, 3, height, width)``, from nothing but a generator."""


def learn_prompts(
    encoder: ImageTextEncoder,
    hazy: Images,
    clear: Images,
    *,
    length: int = 16,
    steps: int = 500,
    seed: int = 0,
) -> Tensor:
    """Return a pair of prompts, as tokens, by which an encoder tells hazy from clear images.

    Cross entropy over the two prompts on unpaired images (CLIP-LIT, Liang et al. 2023,
    arXiv:2303.17569, eq. 2).

    Args:
        encoder: Frozen.
        hazy: Draws hazy images.
        clear: Draws clear images, of other scenes.
        length: Tokens of a prompt.
        steps: Steps of Adam with a learning rate of 5e-3.
        seed: Start of every random number.

    Returns:
        Shape ``(2, length, encoder.width)``: hazy, then clear.
    """
    generator = torch.Generator().manual_seed(seed)
    contexts = _START * torch.randn(2, length, encoder.width, generator=generator)
    contexts.requires_grad_()
    optimizer = torch.optim.Adam([contexts], lr=5e-3)
    for _ in range(steps):
        drawn = [hazy(generator), clear(generator)]
        with torch.no_grad():
            seen = torch.cat([encoder.images(images) for images in drawn])
        kinds = torch.arange(2).repeat_interleave(torch.tensor([len(d) for d in drawn]))
        logits = prompt_logits(seen, encoder.tokens(contexts))
        loss = functional.cross_entropy(logits, kinds.to(logits.device))
        (contexts.grad,) = torch.autograd.grad(loss, [contexts])
        optimizer.step()
    return contexts.detach()


def save_prompts(path: Path, contexts: Tensor, *, encoder: str) -> None:
    """Write prompts to a safetensors file, whole or not at all.

    Args:
        path: Where to.
        contexts: Shape ``(2, length, width)``.
        encoder: Name of the encoder that they belong to.
    """
    record = {"encoder": json.dumps(encoder)}
    write_atomic(path, save({_NAME: contexts.float().contiguous()}, record))


def load_prompts(path: Path, *, width: int) -> Tensor:
    """Return the prompts of a file.

    Args:
        path: Written by ``save_prompts``.
        width: Size of a token of the encoder that will read them.

    Raises:
        WeightsError: If the file is missing, damaged, or of another encoder.
    """
    try:
        with safe_open(path, framework="pt") as file:
            contexts: Tensor = file.get_tensor(_NAME)
    except (SafetensorError, OSError) as error:
        message = f"cannot read prompts {path} ({error}): give a file of learn_prompts"
        raise WeightsError(message) from None
    if contexts.ndim != 3 or len(contexts) != 2 or contexts.shape[2] != width:
        message = (
            f"prompts {path} have shape {tuple(contexts.shape)}, and this encoder needs "
            f"(2, length, {width}): learn them with the same encoder"
        )
        raise WeightsError(message)
    return contexts
