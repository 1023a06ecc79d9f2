"""Fit what clear, foggy and natural images look like to FADE and NIQE, for the dehazing task.

    python -m benchmarks.fit_measures DATA [--out FOLDER] [--every N]

DATA is a folder of training images: clear/ with depth/ and index.csv, real_hazy/, and
real_pairs/ with hazy/ and gt/. Nothing else is read; how well the measures then rank other
images is measured by benchmarks/measures.py.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from coa_compress.checkpoint import save_tensors
from coa_compress.tasks.dehazing.fade import FEATURES, fade_features
from coa_compress.tasks.dehazing.folders import Contents, read_folder
from coa_compress.tasks.dehazing.image_statistics import Gaussian
from coa_compress.tasks.dehazing.niqe import N_FEATURES, patch_features
from coa_compress.tasks.dehazing.reference_statistics import OWN
from coa_compress.tasks.images import read_image

SHARP = 0.75
"""Patches of clear images count for NIQE from this part of the sharpness of the sharpest one."""


@dataclass(slots=True)
class Moments:
    """Sums over samples, from which a Gaussian follows without keeping them.

    Args:
        count: Samples so far.
        total: Their sum, shape ``(n_features,)``.
        products: Sum of their outer products, shape ``(n_features, n_features)``.
    """

    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def empty(cls, n_features: int) -> "Moments":
        """Return the sums of nothing."""
        return cls(0, *(torch.zeros(size, dtype=torch.float64) for size in _sizes(n_features)))

    def add_(self, samples: Tensor) -> None:
        """Add samples, shape ``(n_samples, n_features)``, but those with an undefined feature."""
        known = samples[samples.isfinite().all(dim=1)].double()
        self.count += len(known)
        self.total += known.sum(dim=0)
        self.products += known.T @ known

    def gaussian(self) -> Gaussian:
        """Return mean and covariance of the samples."""
        mean = self.total / self.count
        covariance = (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(mean, (covariance + covariance.T) / 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--every", type=int, default=1, help="use each N-th clear image only")
    given = parser.parse_args(arguments)
    out = given.out or Path(str(files("coa_compress.tasks.dehazing"))) / "weights"
    out.mkdir(parents=True, exist_ok=True)
    contents = read_folder(given.data)
    clear, foggy = _clear(contents)[:: given.every], _foggy(contents)
    found = fit(clear, foggy)
    note = (
        f"FADE: patches of {len(clear)} clear and {len(foggy)} hazy photographs; NIQE: sharp "
        "patches of the clear ones; python -m benchmarks.fit_measures"
    )
    tensors: dict[str, Tensor] = {}
    for name, moments in found.items():
        gaussian = moments.gaussian()
        tensors |= {f"{name}_mean": gaussian.mean, f"{name}_covariance": gaussian.covariance}
        print(f"{name}: {moments.count} patches")
    save_tensors(out / OWN, tensors, metadata={"note": note})


def fit(clear: Sequence[Path], foggy: Sequence[Path]) -> dict[str, Moments]:
    """Return the sums over the patches of the images, by what they describe."""
    found = {name: Moments.empty(len(FEATURES)) for name in ("fade_clear", "fade_foggy")}
    found["niqe"] = Moments.empty(N_FEATURES)
    for image in _read(clear):
        found["fade_clear"].add_(fade_features(image))
        features, sharpness = patch_features(image)
        found["niqe"].add_(features[sharpness > SHARP * sharpness.max()])
    for image in _read(foggy):
        found["fade_foggy"].add_(fade_features(image))
    return found


def _clear(contents: Iterable[Contents]) -> list[Path]:
    scenes = [scene.clear for part in contents for scene in part.scenes]
    return scenes + [pair.clear for part in contents for pair in part.pairs]


def _foggy(contents: Iterable[Contents]) -> list[Path]:
    found = [path for part in contents for path in part.photographs]
    return found + [pair.hazy for part in contents for pair in part.pairs]


def _read(paths: Iterable[Path]) -> Iterator[Tensor]:
    for number, path in enumerate(paths):
        yield read_image(path)
        if number % 50 == 0:
            print(f"{number} images", flush=True)


def _sizes(n_features: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (n_features,), (n_features, n_features)


if __name__ == "__main__":
    main()
