"""``coa-compress sensitivity`` as a person calls it."""

import json
import re
import sys

import pytest

from coa_compress.artifacts import SensitivityCurve
from coa_compress.cli import main
from coa_compress.errors import DataError
from coa_compress.report.sensitivity import draw_curves

CODE = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))

def nothing_to_cut():
    return nn.Conv2d(3, 3, 1)
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_networks.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["sensitivity", *arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    yield run
    sys.modules.pop("own_networks", None)


def test_it_prints_a_row_for_each_group_and_draws_the_curves(call, tmp_path):
    code, out, _ = call("own_networks:small", "--size", "16x24", "--draw", "curves.svg")

    head, row, last = out.splitlines()
    assert code == 0
    assert re.split(" {2,}", head) == [
        *("group", "channels", "MACs", "score"),
        *("loss at 75%", "at 50%", "at 25%"),
    ]
    assert row.split()[:4] == ["0", "8", "100.0%", "100.0%"]
    losses = [float(text) for text in row.split()[4:]]
    assert losses == sorted(losses)
    assert losses[0] > 0
    assert last == "curves: curves.svg"
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_json_holds_the_curves(call):
    code, out, _ = call("own_networks:small", "--json", "--widths", "2", "--no-refit")

    document = json.loads(out)
    assert code == 0
    assert (document["scorer"], document["refit"]) == ("sensitivity", False)
    assert [group["group"] for group in document["groups"]] == ["0"]
    assert document["groups"][0]["curve"]["widths"] == [1, 7, 8]
    assert document["groups"][0]["curve"]["losses"][-1] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no student in nowhere"),
        (["own_networks:none"], "module own_networks has no none"),
        (["own_networks:nothing_to_cut"], "no channel group to cut in Conv2d"),
        (["own_networks:small", "--size", "big"], "'big' is no size: give height x width"),
        (["own_networks:small", "--scorer", "tailor"], "no scorer named 'tailor'"),
        (["own_networks:small", "--widths", "0"], "n_widths must be at least 1, got 0"),
        (["own_networks:small", "--draw", "a.gif"], "must end in .svg or .png"),
        (["own_networks:small", "--draw", "none/a.svg"], "there is no folder none"),
    ],
)
def test_what_cannot_be_used_is_one_line(call, arguments, words):
    code, out, err = call(*arguments)

    assert (code, out) == (2, "")
    assert words in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err


def test_the_same_curves_make_the_same_picture(tmp_path):
    curves = {f"group {i}": SensitivityCurve((1, 4, 8), (0.5, 0.1, 0.0)) for i in range(12)}

    for name in ("a.png", "b.png"):
        draw_curves(curves, tmp_path / name, title="all")

    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "a.png").mkdir()

    with pytest.raises(DataError, match=r"cannot draw .*a\.png: "):
        draw_curves({"a": SensitivityCurve((1, 2), (0.5, 0.0))}, tmp_path / "a.png", title="")
