"""The benchmark of own images makes pairs, trains a teacher and compresses it on each kind."""

import pytest
import torch
from small_runs import put_image

from benchmarks import own_images
from benchmarks.networks.residual import denoiser, upscaler
from benchmarks.records import read_record
from coa_compress.tasks.images import read_image
from coa_compress.tasks.restoration.folders import read_images
from coa_compress.tasks.tiling import Sizes, sizes_of


@pytest.fixture
def data(tmp_path):
    """Clear photographs to make pairs of."""
    for number in range(4):
        put_image(tmp_path / "data" / "train" / "clear" / f"{number}.png", number, (150, 141))
        put_image(tmp_path / "data" / "clean" / f"{number}.png", number + 9, (150, 141))
    return tmp_path / "data"


def test_pairs_are_noisy_or_small_images(data, tmp_path):
    arguments = own_images._parsed(["--data", str(data), "--work", str(tmp_path / "work")])
    bench = own_images._Bench(arguments)

    noise, small = (bench._pairs(problem) for problem in ("denoising", "super_resolution"))

    for folder, scale in ((noise, 1), (small, 2)):
        pairs = read_images(folder / "train")
        assert [(pair.name, pair.scale) for pair in pairs] == [(str(n), scale) for n in range(4)]
    first = read_images(noise / "test")[0]
    added = read_image(first.input) - read_image(first.target)
    assert float(added.std()) == pytest.approx(25 / 255, rel=0.2)


def test_networks_start_from_a_plain_enlargement():
    for network, scale in ((denoiser(), 1), (upscaler(), 2)):
        assert sizes_of(network) == Sizes(1, scale)
        tail = network.tail[0] if scale == 2 else network.tail
        torch.nn.init.zeros_(tail.weight)
        torch.nn.init.zeros_(tail.bias)
        image = torch.full((1, 3, 8, 8), 0.25)
        assert torch.equal(network(image), torch.full((1, 3, 8 * scale, 8 * scale), 0.25))


@pytest.mark.slow
def test_rows_are_made_once_and_shown(data, tmp_path, capsys):
    file = tmp_path / "own_images.json"
    arguments = ["--quick", "--data", str(data), "--work", str(tmp_path / "work")]
    arguments += ["--json", str(file), "--problems", "super_resolution"]

    own_images.main(arguments)
    shown = capsys.readouterr().out
    own_images.main(arguments)

    rows = read_record(file)["rows"]
    assert [row["images"] for row in rows] == ["teacher", *own_images._KINDS]
    assert rows[0]["macs_kept"] == 1.0
    assert all(row["macs_kept"] <= 0.25 for row in rows[1:])
    assert all(5 < row["psnr_db"] < 60 for row in rows)
    assert "| super-resolution | student, own pairs | " in shown
    assert capsys.readouterr().out == ""
