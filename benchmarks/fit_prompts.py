"""Learn the pair of prompts by which CLIP tells hazy from clear photographs.

    python -m benchmarks.fit_prompts --hazy DIR --clear DIR --clip ViT-B-32:laion2b_s34b_b79k
        --out FILE [--steps 500] [--length 16]

The folders need not show the same scenes. ``task.clip_prompts`` of a recipe takes the file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from coa_compress.tasks.dehazing.guidance.clip import ClipEncoder
from coa_compress.tasks.dehazing.guidance.prompts import Images, learn_prompts, save_prompts
from coa_compress.tasks.dehazing.sources import PhotographSource
from coa_compress.tasks.dice import Dice
from coa_compress.tasks.image_cache import ImageCache
from coa_compress.tasks.images import list_images

_BATCH = 8
_CROP = 224


def main(given: Sequence[str] | None = None) -> None:
    """Learn the prompts and write them.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    encoder = ClipEncoder(arguments.clip)
    contexts = learn_prompts(
        encoder,
        images_of(arguments.hazy),
        images_of(arguments.clear),
        length=arguments.length,
        steps=arguments.steps,
    )
    save_prompts(arguments.out, contexts, encoder=arguments.clip)
    print(f"wrote {arguments.out}")


def images_of(folder: Path, *, batch: int = _BATCH, crop: int = _CROP) -> Images:
    """Return a function that draws random crops of the images in a folder."""
    source = PhotographSource(list_images(folder), ImageCache())

    def draw(generator: torch.Generator) -> Tensor:
        dice = Dice(generator)
        return torch.stack([source.crop(crop, dice) for _ in range(batch)])

    return draw


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.fit_prompts", description=__doc__)
    parser.add_argument("--hazy", type=Path, required=True, help="folder of hazy photographs")
    parser.add_argument("--clear", type=Path, required=True, help="folder of clear photographs")
    parser.add_argument("--clip", required=True, help="architecture:weights of open_clip")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--length", type=int, default=16, help="tokens of a prompt")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
