"""PSNR of the published networks on test pairs: do architecture and weights belong together?

    python -m benchmarks.networks.check DATA [--networks gcanet] [--images 20] [--splits NAME ...]

DATA holds ``weights/`` and ``test/``. Prints one line a network and split.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.networks.published import PUBLISHED, default_data, load_published
from coa_compress.tasks.dehazing.judging import Judge
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask

_TILE = 2048


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, nargs="?", default=default_data())
    parser.add_argument("--networks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument(
        "--splits", nargs="+", default=["sots_indoor", "sots_outdoor", "real_pairs"]
    )
    parser.add_argument("--images", type=int, help="most images of each split; all by default")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give the folder that holds weights/ and test/")
    for name in arguments.networks:
        for split, value, count in figures(
            name, arguments.data, splits=arguments.splits, images=arguments.images
        ):
            print(f"{name} {split} {value:.2f} dB on {count} images", flush=True)


def figures(
    name: str, data: Path, *, splits: Sequence[str], images: int | None
) -> Iterator[tuple[str, float, int]]:
    """Yield split, mean PSNR in dB and number of images.

    Args:
        name: A key of ``PUBLISHED``.
        data: Holds ``weights/`` and ``test/``.
        splits: Folders in ``test/``.
        images: Most images of each, evenly spaced, or None for all.
    """
    judge = Judge(load_published(name, data), _TILE)
    folders = tuple(str(data / "test" / split) for split in splits)
    task = DehazingTask(DehazingSettings(test=folders, max_test_images=images))
    for split, examples in task.data.test.items():
        yield split, judge.mean_psnr_db(examples), len(examples)


if __name__ == "__main__":
    main()
