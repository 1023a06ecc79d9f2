"""The picture of the README."""

import pytest
import torch
from PIL import Image

from benchmarks import pictures
from coa_compress.artifacts import Picture
from coa_compress.stages.files import save_pictures


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run" / "06_measure"
    folder.mkdir(parents=True)
    image = torch.full((24, 32, 3), 200, dtype=torch.uint8)
    rows = [
        Picture("builtin: cat", {"hazy": image, "student": image // 2}, {"student": "9.0 dB"}),
        Picture("real: house", {"hazy": image}),
    ]
    save_pictures(folder, rows)
    return folder.parent


def test_rows_of_a_run_become_one_picture(run, tmp_path):
    out = tmp_path / "new" / "two.png"

    pictures.main([str(run), "--rows", "real: house", "builtin: cat", "--out", str(out)])

    drawn = Image.open(out).convert("RGB")
    colors = {color for _, color in drawn.getcolors(maxcolors=100_000)}
    assert {(200, 200, 200), (100, 100, 100)} <= colors
    assert drawn.width > drawn.height


def test_what_is_not_there_is_one_line(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        pictures.main([str(run), "--rows", "builtin: dog"])
    assert "has no builtin: dog: it has builtin: cat, real: house" in capsys.readouterr().err

    with pytest.raises(SystemExit, match="2"):
        pictures.main([str(tmp_path)])
    assert "holds no finished run: give the folder that --out named" in capsys.readouterr().err
