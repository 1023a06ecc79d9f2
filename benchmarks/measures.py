"""How well the measures without truth tell haze: known values, pairs ranked, synthetic haze.

    python -m benchmarks.measures [--data DIR] [--every N] [--quick] [--json FILE]

DIR holds test/ (folders of pairs, and photographs), and may hold train/real_hazy, train_extra/ with
clear/ and depth/, and iqa/ with the parameters of the authors of FADE and NIQE, which are then
reported beside our own. A part is written to the file once it is done and is not made again.
``--quick`` takes built-in scenes only.
"""

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from benchmarks.networks.published import default_data
from benchmarks.records import markdown_table, new_record, read_record, write_record
from coa_compress.tasks.dehazing.dark_channel import dark_channel_density
from coa_compress.tasks.dehazing.fade import FadeParameters, fade_features, fade_of
from coa_compress.tasks.dehazing.folders import Contents, SceneFile, read_folder
from coa_compress.tasks.dehazing.haze import add_haze, sample_haze, transmission
from coa_compress.tasks.dehazing.image_statistics import Gaussian
from coa_compress.tasks.dehazing.niqe import niqe_of, patch_features
from coa_compress.tasks.dehazing.no_reference import NoReference
from coa_compress.tasks.dehazing.photographs import photograph_scenes
from coa_compress.tasks.dehazing.reference_statistics import (
    own_fade_parameters,
    own_niqe_reference,
    read_fade_parameters,
    read_niqe_reference,
)
from coa_compress.tasks.dehazing.scenes import Scene
from coa_compress.tasks.folders import name_digest, spaced
from coa_compress.tasks.images import list_images, read_image, read_levels, to_float
from coa_compress.tasks.measures import in_8_bits

Values = dict[str, list[float]]
"""Measure name to one value for each image."""

THICKNESS = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Optical depths at the median distance, from no haze to dense haze."""

SCENES = 12
"""Most scenes that are hazed."""

_HAZE = ("fade", "fade_original", "dark_channel_density")
_NAMES = {
    "fade": "FADE, our statistics",
    "fade_original": "FADE, original parameters",
    "dark_channel_density": "dark channel density",
    "niqe": "NIQE, our statistics",
    "niqe_original": "NIQE, original parameters",
}


class Bench:
    """Measures images with every set of parameters there is.

    Args:
        data: The folder of images and parameters, or None.
    """

    def __init__(self, data: Path | None) -> None:
        self.fade: dict[str, FadeParameters] = {"fade": own_fade_parameters()}
        self.niqe: dict[str, Gaussian] = {"niqe": own_niqe_reference()}
        if data is not None and (data / "iqa").is_dir():
            self.fade["fade_original"] = read_fade_parameters(data / "iqa")
            path = data / "iqa" / "niqe_pris_params.npz"
            self.niqe["niqe_original"] = read_niqe_reference(path)
        self.seconds = dict.fromkeys(("fade", "dark_channel_density", "niqe"), 0.0)
        self.megapixels = 0.0

    def measure(self, images: Iterable[Tensor]) -> Values:
        """Return every measure of every image, and count the time they take."""
        found: Values = {}
        for image in images:
            for name, value in self._values(image).items():
                found.setdefault(name, []).append(round(value, 5))
        return found

    def _values(self, image: Tensor) -> dict[str, float]:
        self.megapixels += image.shape[1] * image.shape[2] / 1e6
        start = time.process_time()
        features = fade_features(image)
        values = {name: fade_of(features, given) for name, given in self.fade.items()}
        self.seconds["fade"] += time.process_time() - start
        start = time.process_time()
        values["dark_channel_density"] = dark_channel_density(image)
        self.seconds["dark_channel_density"] += time.process_time() - start
        start = time.process_time()
        features, _ = patch_features(image)
        values |= {name: niqe_of(features, given) for name, given in self.niqe.items()}
        self.seconds["niqe"] += time.process_time() - start
        return values

    def ms_per_megapixel(self) -> dict[str, float]:
        """Return processor time by measure, both sets of parameters together."""
        return {
            name: round(1000 * seconds / self.megapixels) for name, seconds in self.seconds.items()
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the parts that are missing, and print the tables."""
    given = _parsed(arguments)
    torch.set_num_threads(1)
    same = {"every": given.every, "statistics": NoReference().digest()}
    record = {**new_record("measures", arguments), **same, "parts": {}}
    if given.json.is_file():
        found = read_record(given.json)
        if all(found[key] == value for key, value in same.items()):
            record["parts"] = {n: {"values": p["values"]} for n, p in found["parts"].items()}
    for name, images in _parts(given.data, given.every):
        if name in record["parts"]:
            continue
        bench = Bench(given.data)
        values = {side: bench.measure(several) for side, several in images.items()}
        record["parts"][name] = {"values": values}
        write_record(given.json, record)
        print(f"{name}: done", flush=True)
    record["ms_per_megapixel"] = _cost(given.data)
    write_record(given.json, record)
    print(f"{values_table(record)}\n\n{render(record)}")


def values_table(record: Mapping[str, Any]) -> str:
    """Return the mean of every measure on every folder as a Markdown table."""
    names = [name for name in _NAMES if any(name in v for _, v in _sides(record))]
    rows = [
        [title, str(len(values["niqe"])), *(f"{statistics.mean(values[n]):.2f}" for n in names)]
        for title, values in _sides(record)
    ]
    return markdown_table(["images", "n", *(_NAMES[name] for name in names)], rows)


def render(record: Mapping[str, Any]) -> str:
    """Return how well each haze measure ranks, and what it costs, as a Markdown table."""
    parts: Mapping[str, Any] = record["parts"]
    pairs = [name for name, part in parts.items() if set(part["values"]) == {"hazy", "clear"}]
    scenes = parts["synthetic haze"]["values"]
    rows = []
    for name in (n for n in _HAZE if n in scenes["0.0"]):
        shares = []
        for pair in pairs:
            hazy, clear = (parts[pair]["values"][side][name] for side in ("hazy", "clear"))
            right = sum(h > c for h, c in zip(hazy, clear, strict=True))
            shares.append(f"{right} of {len(hazy)}")
        within, across = _rank_correlations([values[name] for values in scenes.values()])
        key = name.removesuffix("_original")
        cost = record["ms_per_megapixel"][key]
        shown = [f"{within:.2f}", f"{across:.2f}", f"{cost:.0f}"]
        rows.append([_NAMES[name], *shares, *shown])
    head = ["measure", *pairs, "same scene", "all scenes", "ms per megapixel"]
    count = len(scenes["0.0"]["niqe"])
    return (
        f"{markdown_table(head, rows)}\n\n"
        "Pairs: how often the hazy image has the higher value. "
        f"Rank correlation with the strength of synthetic haze on {count} scenes at optical depths "
        f"of {', '.join(map(str, THICKNESS))}: mean within a scene, and over all images. Time: one "
        "thread, processor time"
        f" ({record['device']}); FADE has both sets of parameters in it. Made by "
        f"`{record['command']}`."
    )


def _rank_correlations(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return Spearman's correlation with the strength: mean within the scenes, and over all.

    Args:
        values: By strength, then by scene.
    """
    strengths = range(len(values))
    scenes = list(zip(*values, strict=True))
    within = [float(spearmanr(strengths, scene).statistic) for scene in scenes]
    every = [strength for strength in strengths for _ in scenes]
    across = float(spearmanr(every, [v for several in values for v in several]).statistic)
    return statistics.mean(within), across


def _sides(record: Mapping[str, Any]) -> Iterator[tuple[str, Values]]:
    for name, part in record["parts"].items():
        for side, values in part["values"].items():
            yield f"{name}, {side}", values


def _parts(data: Path | None, every: int) -> Iterator[tuple[str, dict[str, Iterable[Tensor]]]]:
    """Yield the name of each part and its images by side, read when they are needed."""
    if data is not None:
        photographs = {}
        for part in read_folder(data / "test"):
            if part.pairs:
                yield f"test/{part.path.name}", _pairs(part, every)
            photographs[f"test/{part.path.name}"] = list(part.photographs)
        for name, paths in photographs.items():
            if paths:
                yield name, {"all": map(read_image, paths[::every])}
    scenes: list[Scene | SceneFile] = [
        *photograph_scenes("validation"),
        *photograph_scenes("test"),
    ]
    if data is not None:
        found = [scene for part in read_folder(data / "train_extra") for scene in part.scenes]
        scenes = list(spaced(found, max(1, SCENES // every)))
    hazed: dict[str, Iterable[Tensor]] = {str(d): _hazed(scenes, d) for d in THICKNESS}
    yield "synthetic haze", hazed
    if data is not None and (data / "train" / "real_hazy").is_dir():
        paths = list_images(data / "train" / "real_hazy")[::every]
        yield "train/real_hazy", {"all": map(read_image, paths)}


def _cost(data: Path | None) -> dict[str, float]:
    """Return the processor time of each measure on the built-in photographs, in ms a megapixel."""
    bench = Bench(data)
    images = [to_float(scene.clear) for scene in photograph_scenes("test")]
    bench.measure(images)
    bench.megapixels, bench.seconds = 0.0, dict.fromkeys(bench.seconds, 0.0)
    bench.measure(images)
    return bench.ms_per_megapixel()


def _pairs(part: Contents, every: int) -> dict[str, Iterable[Tensor]]:
    chosen = part.pairs[::every]
    return {
        "hazy": (read_image(pair.hazy) for pair in chosen),
        "clear": (read_image(pair.clear) for pair in chosen),
    }


def _hazed(scenes: Sequence[Scene | SceneFile], thickness: float) -> Iterator[Tensor]:
    for scene in scenes:
        if isinstance(scene, Scene):
            clear, depth = to_float(scene.clear), scene.depth.float()
        else:
            clear = read_image(scene.clear)
            depth = to_float(read_levels(scene.depth, gray=True)) * scene.dmax
        size = (clear.shape[1], clear.shape[2])
        depth = functional.interpolate(
            depth.reshape(1, 1, *depth.shape[-2:]), size, mode="bilinear", align_corners=False
        )[0]
        generator = torch.Generator().manual_seed(name_digest(scene.name))
        airlight = sample_haze(scene.domain, generator).airlight
        beta = thickness / max(1e-3, float(depth.median()))
        yield in_8_bits(add_haze(clear, transmission(depth, beta), airlight))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--every", type=int, default=1, help="take each N-th image only")
    parser.add_argument("--quick", action="store_true", help="built-in scenes only")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/measures.json"))
    given = parser.parse_args(arguments)
    if given.quick:
        given.data = None
        if given.json == parser.get_default("json"):
            given.json = Path("benchmarks/results/measures-quick.json")
    return given


if __name__ == "__main__":
    main()
