"""Fit the two no-reference measures of the dehazing task and check them on the test split.

python benchmarks/fit_measures.py DATA [--out FOLDER]

DATA holds train/ and train_extra/ (clear/, depth/, index.csv, real_pairs/), clean/ and test/.
The test split is used for the printed check only.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.dehazing.folders import Contents, read_folder
from coa_compress.tasks.dehazing.haze import add_haze, sample_haze, transmission
from coa_compress.tasks.dehazing.haze_density import haze_density, haze_features
from coa_compress.tasks.dehazing.naturalness import naturalness, patch_features
from coa_compress.tasks.images import list_images, read_image, read_levels, to_float

HAZED_PER_SCENE = 2
CLEAR_DENSITY = 0.05
RIDGE = 3.0
SHARP = 0.75
SEED = 0


def main() -> None:
    """Fit, write, check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    out = arguments.out or Path(str(files("coa_compress.tasks.dehazing"))) / "weights"
    out.mkdir(parents=True, exist_ok=True)
    contents = [
        part
        for name in ("train", "train_extra")
        for part in read_folder(arguments.data / name)
        if part.has_truth
    ]
    fit_naturalness(contents, arguments.data / "clean", out / "naturalness.safetensors")
    fit_haze_density(contents, out / "haze_density.json")
    check(arguments.data / "test")


def fit_haze_density(contents: Sequence[Contents], out: Path) -> None:
    """Fit the ridge regression and write its weights."""
    rows, targets = [], []
    for image, density in _density_examples(contents):
        rows.append(haze_features(image))
        targets.append(min(0.97, max(CLEAR_DENSITY, density)))
    names = list(rows[0])
    features = np.array([[row[name] for name in names] for row in rows])
    target = np.array(targets)
    logits = np.log(target / (1 - target))
    mean, scale = features.mean(0), features.std(0)
    weight, intercept = _ridge(((features - mean) / scale).clip(-3, 3), logits)
    model = {
        "note": (
            "ridge regression of logit(mean(1 - t)) on clipped standardized image statistics; "
            f"benchmarks/fit_measures.py, {len(rows)} images, ridge {RIDGE}, seed {SEED}"
        ),
        "intercept": float(f"{intercept:.6g}"),
        **{
            key: {name: float(f"{value:.6g}") for name, value in zip(names, values, strict=True)}
            for key, values in (("mean", mean), ("scale", scale), ("weight", weight))
        },
    }
    out.write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")


def fit_naturalness(contents: Sequence[Contents], clean: Path, out: Path) -> None:
    """Fit the Gaussian of sharp patches of clear photographs and write it."""
    found = []
    paths = [scene.clear for part in contents for scene in part.scenes] + list_images(clean)
    for path in paths:
        features, sharpness = patch_features(read_image(path))
        found.append(features[sharpness > SHARP * sharpness.max()])
    features = torch.cat(found)
    covariance = torch.cov(features.T)
    note = (
        "mean and covariance of 36 natural-scene statistics of sharp patches of clear photographs; "
        f"benchmarks/fit_measures.py, {len(features)} patches of {len(paths)} photographs"
    )
    save_file({"mean": features.mean(0), "covariance": covariance}, out, metadata={"note": note})
    print(f"naturalness: {len(features)} patches of {len(paths)} photographs")


def check(test: Path) -> None:
    """Print how well the measures order the pairs of the test split."""
    for part in read_folder(test):
        if not part.pairs:
            values = [haze_density(read_image(path)) for path in part.photographs]
            natural = [naturalness(read_image(path)) for path in part.photographs]
            print(f"{part.path.name}: haze {np.mean(values):.3f}, natural {np.mean(natural):.2f}")
            continue
        hazy = [read_image(pair.hazy) for pair in part.pairs]
        clear = [read_image(pair.clear) for pair in part.pairs]
        before = np.array([haze_density(image) for image in hazy])
        after = np.array([haze_density(image) for image in clear])
        truth = [mean_opacity(h, c) for h, c in zip(hazy, clear, strict=True)]
        quality = [float(np.mean([naturalness(i) for i in images])) for images in (hazy, clear)]
        print(
            f"{part.path.name}: ranked {np.mean(before > after):.1%} of {len(hazy)}, haze "
            f"{before.mean():.3f} -> {after.mean():.3f}, "
            f"spearman {spearmanr(before, truth)[0]:.2f}, "
            f"natural {quality[0]:.2f} -> {quality[1]:.2f}"
        )


def mean_opacity(hazy: Tensor, clear: Tensor) -> float:
    """Return the mean of ``1 - t`` of a pair, by least squares in patches of 16 pixels."""

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values[None], 16)[0]

    covariance = (mean(hazy * clear) - mean(hazy) * mean(clear)).sum(0)
    variance = (mean(clear.square()) - mean(clear).square()).sum(0)
    passed = (covariance / (variance + 1e-4)).clamp(0, 1)
    weight = variance / (variance + 1e-3)
    return 1 - float((passed * weight).sum() / weight.sum())


def _density_examples(contents: Sequence[Contents]) -> Iterator[tuple[Tensor, float]]:
    generator = torch.Generator().manual_seed(SEED)
    for part in contents:
        for scene in part.scenes:
            clear = read_image(scene.clear)
            depth = to_float(read_levels(scene.depth, gray=True))[None] * scene.dmax
            size = (clear.shape[1], clear.shape[2])
            depth = functional.interpolate(depth, size, mode="bilinear", align_corners=False)[0]
            yield clear, 0.0
            for _ in range(HAZED_PER_SCENE):
                haze = sample_haze(scene.domain, generator)
                passed = transmission(depth, haze.beta)
                yield add_haze(clear, passed, haze.airlight), 1 - float(passed.mean())
        for pair in part.pairs:
            hazy, clear = read_image(pair.hazy), read_image(pair.clear)
            # few real pairs stand beside many scenes: each counts several times
            for _ in range(4):
                yield clear, 0.0
                yield hazy, mean_opacity(hazy, clear)


def _ridge(
    features: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    intercept = float(target.mean())
    centered = features - features.mean(0)
    gram = centered.T @ centered + RIDGE * np.eye(features.shape[1])
    weight: NDArray[np.float64] = np.linalg.solve(gram, centered.T @ (target - intercept))
    return weight, intercept - float(features.mean(0) @ weight)


if __name__ == "__main__":
    main()
