"""The main job in another process: what it leaves behind, and that its figures agree."""

import json
import re
import shutil

import jsonschema
import pytest
import torch
from safetensors.torch import load_file

from coa_compress import load
from coa_compress.profiling.counting import count_macs, count_params
from coa_compress.report.document import schema
from coa_compress.report.write import read_report
from coa_compress.tasks.dehazing.networks import HazeUNet

ROLES = ("teacher", "student", "adapted")
STAGES = ["score", "allocate", "prune", "refit", "distill", "adapt", "measure"]


@pytest.fixture(scope="module")
def report(whole_run):
    assert whole_run.returncode == 0, whole_run.stderr
    return read_report(whole_run.folder)


def test_the_run_ends_with_its_summary_and_where_the_report_is(whole_run, report):
    summary, place = whole_run.stdout.splitlines()

    assert summary == report["headline"]
    assert place == f"report: {whole_run.folder / 'report.html'}"
    assert "Traceback" not in whole_run.stderr
    assert "Warning" not in whole_run.stderr


def test_every_file_is_there_and_nothing_is_left_over(whole_run):
    names = {path.name for path in whole_run.folder.iterdir()}
    stages = {f"{number:02d}_{name}" for number, name in enumerate(STAGES)}

    assert names == stages | {
        ".lock",
        "recipe.yaml",
        "report.html",
        "report.json",
        "report.md",
        "run.json",
        "student",
    }
    assert {path.name for path in (whole_run.folder / "student").iterdir()} == {
        "student.json",
        "student.safetensors",
    }
    assert not list(whole_run.folder.rglob("training.safetensors"))
    assert not list(whole_run.folder.rglob("*.tmp"))


def test_the_report_keeps_to_its_schema(report):
    jsonschema.Draft202012Validator(schema()).validate(report)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("measure", ["params", "macs", "latency_ms", "peak_memory_mb"])
def test_every_cost_of_every_network_is_a_number_above_0(report, role, measure):
    assert report["measurements"][role][measure] > 0


@pytest.mark.parametrize("role", ROLES)
def test_every_network_is_measured_on_the_test_folder_and_on_real_images(report, role):
    measured = report["measurements"][role]

    assert measured["file_bytes"] > 0
    assert 5 < measured["psnr_db"]["test"] < 60
    assert 0 < measured["ssim"]["test"] <= 1
    assert measured["fade"].keys() == {"test", "real"}
    assert measured["niqe"].keys() == {"test", "real"}


def test_the_student_costs_exactly_what_the_allocation_promised(whole_run, report):
    promised = json.loads((whole_run.folder / "01_allocate/allocation.json").read_text())
    teacher, student = report["measurements"]["teacher"], report["measurements"]["student"]

    assert student["macs"] == promised["macs"] <= 0.3 * promised["teacher_macs"]
    assert student["params"] == promised["params"]
    assert teacher["macs"] == promised["teacher_macs"]
    assert teacher["params"] == promised["teacher_params"]
    assert report["allocation"]["macs_kept"] == promised["macs"] / promised["teacher_macs"]
    widths = {g["name"]: g["student_width"] for g in report["allocation"]["groups"]}
    assert widths == promised["widths"]


def test_the_saved_student_is_what_was_measured(whole_run, report):
    student = load(whole_run.folder / "student")
    measured = report["measurements"]["adapted"]

    assert isinstance(student, HazeUNet)
    assert not student.training
    assert count_macs(student, torch.zeros(1, 3, 48, 64)) == measured["macs"]
    assert count_params(student) == measured["params"]
    assert student(torch.rand(2, 3, 37, 51)).shape == (2, 3, 37, 51)


def test_a_refused_adaptation_returns_the_student_and_says_why(whole_run, report):
    folder, gate = whole_run.folder, report["gate"]
    distilled = load_file(folder / "04_distill/student.safetensors")
    adapted = load_file(folder / "05_adapt/adapted.safetensors")

    assert not gate["accepted"]
    assert re.search("^fade .*(less than the 99.0% asked for|must not rise)", gate["reasons"][0])
    assert [found["measure"] for found in gate["findings"]] == [
        "fade",
        "dark_channel_density",
        "niqe",
        "skill",
    ]
    assert report["final"] == "student"
    assert "refused" in report["headline"]
    assert adapted.keys() == distilled.keys()
    assert all(torch.equal(adapted[name], distilled[name]) for name in distilled)
    costs = ("macs", "params", "psnr_db", "ssim")
    student, after = report["measurements"]["student"], report["measurements"]["adapted"]
    assert {name: student[name] for name in costs} == {name: after[name] for name in costs}


def test_losses_of_every_training_stage_are_kept(report):
    histories = report["histories"]

    assert list(histories) == ["distill", "adapt"]
    assert set(histories["distill"]["losses"]) == {"truth.l1", "teacher.l1", "feature.l2"}
    assert set(histories["adapt"]["losses"]) == {"prior.dark_channel", "consistency", "replay.l1"}
    assert [step for step, _ in histories["distill"]["validation"]] == [4, 8]


def test_the_report_says_where_its_figures_come_from(report):
    provenance = report["provenance"]

    assert provenance["device"] == "cpu"
    assert provenance["seed"] == 0
    assert provenance["threads"] == 1
    assert provenance["example_size"] == [1, 3, 48, 64]
    assert provenance["versions"]["torch"] == torch.__version__
    assert report["recipe"]["stages"]["adapt"]["gate"]["min_defect_fall"] == 0.99
    assert list(report["stage_seconds"]) == STAGES


def test_the_page_loads_nothing_from_anywhere(whole_run):
    page = (whole_run.folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href|action|poster)\s*=\s*["']?([^"'\s>]+)""", page)

    assert not re.search(r"<script[^>]*\bsrc|<link|<iframe|@import", page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.findall(r"url\(\s*['\"]?(?!data:|#)", page)
    assert "data:image/" in page


def test_the_student_is_used_on_a_folder_and_measured_on_pairs(whole_run, images, tmp_path, call):
    out = tmp_path / "clear"

    applied = call("apply", whole_run.folder, images / "real", "--out", out)
    measured = call("evaluate", whole_run.folder, "--data", images / "test", "--json")

    assert applied.code == 0, applied.err
    assert applied.out == f"5 files in {out}\n"
    assert sorted(path.name for path in out.iterdir()) == [f"{n}.png" for n in range(5)]
    reported = read_report(whole_run.folder)["measurements"]["adapted"]
    values = json.loads(measured.out)["measures"]
    assert values["psnr_db"]["test"] == pytest.approx(reported["psnr_db"]["test"], abs=1e-3)
    assert values["ssim"]["test"] == pytest.approx(reported["ssim"]["test"], abs=1e-5)


def test_a_run_folder_can_be_moved(whole_run, tmp_path, call):
    moved = shutil.copytree(whole_run.folder, tmp_path / "elsewhere")

    again = call("recipe", whole_run.recipe, "--out", moved)

    assert again.code == 0, again.err
    assert again.err.count("done before") == len(STAGES)
