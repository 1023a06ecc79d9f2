"""The adaptation benchmark: its variants are recipes, its table shows its rows."""

import pytest

from benchmarks import adapt
from coa_compress.errors import DataError


@pytest.mark.parametrize("name", adapt.VARIANTS)
def test_every_variant_is_a_recipe(name):
    arguments = adapt._parsed(["--quick"])

    settings = adapt._recipe(adapt.VARIANTS[name], arguments).stages["adapt"]

    assert settings.training.steps == 4
    assert (settings.mode == "bilevel") == ("bilevel" in name)


def row(variant, seed, psnr_db):
    measures = {
        "psnr_db": {"real_pairs": psnr_db, "sots_indoor": 20.0},
        "ssim": {"real_pairs": 0.7, "sots_indoor": 0.8},
        "fade": {"real_pairs": 0.6, "sots_indoor": 0.5, "real": 0.8},
    }
    return {"variant": variant, "seed": seed, "measures": measures, "seconds": 10.0}


def test_the_table_has_means_and_spread():
    record = {
        "rows": [row("not adapted", 0, 18.0), row("detail", 0, 18.0), row("detail", 1, 19.0)],
        "keep_macs": 0.125,
        "device_name": "a machine",
        "command": "python -m benchmarks.adapt",
    }

    table = adapt.render(record)

    assert "| not adapted | 18.00 | 20.00 | 0.700 | 0.800 | 10 |" in table
    assert "| detail | 18.50 ± 0.71 | 20.00 ± 0.00 | 0.700 ± 0.000 | 0.800 ± 0.000 | 10 |" in table
    assert "FADE, real photos" in table
    assert "Seeds of the adaptation: 0, 1;" in table


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*real_hazy"):
        adapt._Bench(adapt._parsed(["--data", str(tmp_path), "--work", str(tmp_path / "work")]))
