"""Reports of finished runs: rendered again, and side by side."""

import json
import re
import shutil

import pytest

from coa_compress.errors import CoaWarning, DataError
from coa_compress.report import figures
from coa_compress.report.comparison import compare_runs, comparison_html, comparison_text
from coa_compress.report.content import Report
from coa_compress.report.reading import report_of
from coa_compress.report.write import read_report
from coa_compress.result import render_again

PAGES = ("report.json", "report.md", "report.html")


def small(keep, **student):
    measured = {"macs": 1000 * keep, "psnr_db": {"test": 20 + 10 * keep}, **student}
    return Report(
        name="x",
        title="X",
        measurements={"teacher": {"macs": 1000, "psnr_db": {"test": 30.0}}, "student": measured},
        provenance={"seed": 3},
        stage_seconds={"score": 2.0},
    )


@pytest.fixture
def copied(whole_run, tmp_path):
    return shutil.copytree(whole_run.folder, tmp_path / "run")


def test_a_report_rendered_again_is_the_same_to_the_byte(copied, call):
    before = {name: (copied / name).read_bytes() for name in PAGES}
    for name in ("report.md", "report.html"):
        (copied / name).unlink()

    said = call("report", copied)

    assert (said.code, said.out) == (0, f"report: {copied / 'report.html'}\n")
    assert {name: (copied / name).read_bytes() for name in PAGES} == before


def test_without_the_pictures_the_rest_is_rendered(copied):
    (measured,) = copied.glob("??_measure")
    shutil.rmtree(measured)

    with pytest.warns(CoaWarning, match="no folder of stage 'measure': the pictures are left out"):
        page = render_again(copied)

    assert "data:image" not in page.read_text(encoding="utf-8")
    assert len(read_report(copied)["measurements"]) == 3


def test_a_folder_without_a_report_is_refused(tmp_path, call):
    with pytest.raises(DataError, match=r"cannot read .*report.json: No such file"):
        render_again(tmp_path)
    said = call("compare", tmp_path, tmp_path)
    assert said.code == 2
    assert "is this a finished run?" in said.err


def test_an_older_report_has_no_explanations(whole_run):
    values = read_report(whole_run.folder)
    assert report_of(values).explanations
    assert report_of({k: v for k, v in values.items() if k != "explanations"}).explanations == {}


def test_runs_are_compared_by_their_final_students():
    runs = {"half": small(0.5), "quarter": small(0.25, haze={"real": 0.1})}
    lines = {(line.label, line.split): line for line in compare_runs(runs).lines}

    macs = lines["MACs", ""].cells
    assert [(cell.value, cell.change) for cell in macs] == [
        ("500", figures.percent(0.5)),
        ("250", figures.percent(0.25)),
    ]
    (psnr,) = [line for (label, _), line in lines.items() if label.startswith("PSNR")]
    assert [cell.value for cell in psnr.cells] == ["25.00", "22.50"]
    assert [cell.value for cell in lines["Haze", "real"].cells] == [figures.UNKNOWN, "0.100"]
    assert [cell.value for cell in lines["Seed", ""].cells] == ["3", "3"]


def test_a_comparison_as_text_lines_up_and_as_a_page_loads_nothing():
    found = compare_runs({"a": small(0.5), "<b>": small(0.25)})

    text = comparison_text(found).splitlines()
    assert text[0].split() == ["a", "<b>"]
    assert len({len(line) for line in text[:2]}) == 1
    page = comparison_html(found)
    assert "&lt;b&gt;" in page
    assert "<b>: " not in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)


def test_the_command_compares_runs(copied, whole_run, tmp_path, call):
    said = call("compare", whole_run.folder, copied, "--out", tmp_path / "compare.html")
    assert said.code == 0
    assert "MACs" in said.out
    assert said.out.endswith(f"comparison: {tmp_path / 'compare.html'}\n")
    assert "runs side by side" in (tmp_path / "compare.html").read_text(encoding="utf-8")

    said = call("compare", whole_run.folder, copied, "--json")
    document = json.loads(said.out)
    assert len(document["runs"]) == 2
    first, second = document["runs"]
    assert first["measurements"] == second["measurements"]
    assert first["run"] != second["run"]


def test_one_run_is_nothing_to_compare(whole_run, call):
    said = call("compare", whole_run.folder)
    assert said.code == 2
    assert "give two runs or more" in said.err
