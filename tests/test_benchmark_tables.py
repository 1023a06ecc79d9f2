"""Benchmark records and the tables that pages show of them."""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import frontier, tables
from benchmarks.ablation import QUICK
from benchmarks.peers import in_recipe
from benchmarks.peers.subject import Pruned
from benchmarks.plots import drawn
from benchmarks.records import markdown_table, new_record, read_record, with_table, write_record
from coa_compress.compressor import Compressor
from coa_compress.errors import DataError, SettingError
from coa_compress.recipe.files import load_recipe

ROOT = Path(__file__).parents[1]
END = "<!-- end table -->"
PAGE = f"<!-- table: a -->\nold | \\1\n{END}\nmore\n<!-- table: b -->\nb\n{END}"


def network(psnr, latency=10.0):
    quality = {"psnr_db": {"builtin": psnr}, "ssim": {"builtin": psnr / 25}}
    return {"params": 2e6, "macs": 4e9, "latency_ms": latency, **quality}


def frontier_record():
    rows = [
        {
            "keep_macs": 0.25,
            "seed": seed,
            "teacher": network(21.0, 20.0),
            "student": network(20.0 + seed),
            "adapted": network(20.5),
            "accepted": bool(seed),
        }
        for seed in (0, 1)
    ]
    common = {"name": "tp:magnitude:global", "keep_macs": 0.25, "note": "told by hand to stay"}
    literature = {**network(19.0), "name": "gcanet", "params": 7e5, "macs": 15e9, "latency": 4.0}
    return {
        **new_record("frontier", ["--seeds", "0", "1"]),
        "recipe": "dehaze.yaml",
        "example_size": [1, 3, 64, 48],
        "seeds": [0, 1],
        "rows": rows,
        "peers": [
            {**common, "seed": 0, "teacher": network(21.0, 20.0), "student": network(19.0, 8.0)},
            {**common, "seed": 1, "error": "ValueError: no"},
        ],
        "published": [literature],
    }


def test_the_check_fails_for_an_old_page_and_writing_mends_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "_ROOT", tmp_path)
    monkeypatch.setattr(tables, "_RESULTS", tmp_path)
    monkeypatch.setattr(
        tables, "TABLES", (tables.Table("a", "page.md", "a.json", lambda r: r["benchmark"]),)
    )
    derived = tables.Derived("made.json", "a.json", lambda r: f"[{r['benchmark']}]")
    monkeypatch.setattr(tables, "DERIVED", (derived,))
    write_record(tmp_path / "a.json", new_record("mine", []))
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")

    monkeypatch.setattr(sys, "argv", ["tables", "--check"])
    assert tables.main() == 1
    said = capsys.readouterr().out
    assert "page.md: not up to date" in said
    assert "made.json: not up to date" in said
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == PAGE

    monkeypatch.setattr(sys, "argv", ["tables"])
    assert tables.main() == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == PAGE.replace("old | \\1", "mine")
    assert (tmp_path / "made.json").read_text(encoding="utf-8") == "[mine]"
    assert tables.stale_pages() == []


def test_only_the_named_table_changes_and_its_text_is_taken_literally():
    assert with_table(PAGE, "b", "\\g<1>").count("\\g<1>") == 1
    assert "old" in with_table(PAGE, "b", "new")
    with pytest.raises(DataError, match=re.escape("no place for the table 'c': add <!-- table: c")):
        with_table(PAGE, "c", "new")


def test_a_record_says_what_was_run_and_names_no_place_outside():
    record = new_record("prune", ["/somewhere/else/data", "../shared/test", "--keep", "0.5"])

    assert record["command"] == "python -m benchmarks.prune DATA/data DATA/test --keep 0.5"
    several = new_record("frontier", ["--set", "task.train=/a/train,../b/extra,runs/c", "seed=1"])
    assert several["command"].endswith("--set task.train=DATA/train,DATA/extra,runs/c seed=1")
    assert {"written", "commit", "versions", "device", "threads"} <= record.keys()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot read"),
        ("{}", "it lacks schema_version"),
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path, text, problem):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(DataError, match=f"{problem}.*: run the benchmark again"):
        read_record(path)
    with pytest.raises(DataError, match=r"cannot read .*: run the benchmark again"):
        read_record(tmp_path / "absent.json")


def test_a_record_of_another_version_is_refused(tmp_path):
    write_record(tmp_path / "a.json", {**new_record("x", []), "schema_version": 0})

    with pytest.raises(DataError, match="it is of another version: run the benchmark again"):
        read_record(tmp_path / "a.json")


def test_the_frontier_gives_its_teacher_and_students_to_reports():
    inputs = {"test_digests": {"builtin": "x"}, "example_size": [1, 3, 64, 64]}
    record = {**frontier_record(), "written": "2026-01-02T03:04:05Z", **inputs}
    found = json.loads(frontier.references(record))

    assert found["splits"] == {"builtin": "x"}
    assert [(net["name"], net["measures"]["psnr_db"]["builtin"]) for net in found["networks"]] == [
        ("teacher of 2026-01-02", 21.0),
        ("student of 2026-01-02, 25% of the MACs", 20.5),
    ]
    assert all(net["example_size"] == [1, 3, 64, 64] for net in found["networks"])


def test_the_frontier_shows_means_and_spreads():
    table = frontier.render(frontier_record()).splitlines()

    assert table[2] == "| teacher | 2.000 M | 4.000 G | 1.00 | 21.00 (0.840) |"
    student = "| student, 25.0% of the MACs asked | 2.000 M | 4.000 G | 0.50 "
    assert table[3] == f"{student}| 20.50 ± 0.71 (0.820) |"
    assert table[4].startswith("| the same, adapted (accepted 1 of 2) | ")
    peer = "| `tp:magnitude:global`, 25.0% asked and missed, distilled alike "
    assert table[5] == f"{peer}| 2.000 M | 4.000 G | 0.40 | 19.00 (0.760) |"
    assert (
        table[6]
        == "| `gcanet`, its published weights | 0.700 M | 15.000 G | 4.00 | 19.00 (0.760) |"
    )
    told = "`tp:magnitude:global` was told by hand to stay."
    failed = "`tp:magnitude:global` at 25.0%: ValueError: no."
    assert f" not adapted. {told} {failed} Made by" in table[8]
    assert table[8].startswith("`recipes/dehaze.yaml`. MACs: multiply-accumulates of one 64 x 48")
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_a_plot_shows_its_networks_and_is_the_same_for_the_same_figures():
    plot = frontier.plot(frontier_record())

    assert ElementTree.fromstring(plot).tag.endswith("}svg")
    for text in (
        "teacher",
        "students, adapted",
        "tp:magnitude:global",
        "gcanet, published",
        "MACs (G)",
        "builtin",
    ):
        assert f">{text}</text>" in plot
    assert drawn(plot) == drawn(frontier.plot(frontier_record()))
    changed = frontier_record()
    changed["rows"][0]["student"]["psnr_db"]["builtin"] += 0.001
    assert drawn(plot) != drawn(frontier.plot(changed))
    assert drawn("<svg></svg>") is None


def test_a_plot_by_another_version_of_the_library_is_not_old(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_ROOT", tmp_path)
    monkeypatch.setattr(tables, "_RESULTS", tmp_path)
    monkeypatch.setattr(tables, "TABLES", ())
    monkeypatch.setattr(tables, "DERIVED", (tables.Derived("a.svg", "a.json", frontier.plot),))
    write_record(tmp_path / "a.json", frontier_record())
    plot = tables.rendered("a.svg")

    for text, stale in ((f"<!-- older -->{plot}", []), (plot.replace("drawn:", ""), ["a.svg"])):
        (tmp_path / "a.svg").write_text(text, encoding="utf-8")
        assert tables.stale_pages() == stale


def test_the_frontier_has_a_row_for_each_budget_and_seed_of_its_recipe(
    tmp_path, monkeypatch, capsys
):
    made = []

    def row(keep, seed, arguments):
        made.append((keep, seed, arguments.overrides[-1]))
        return {**frontier_record()["rows"][0], "keep_macs": keep, "seed": seed}

    monkeypatch.setattr(frontier, "_run", row)
    path = tmp_path / "frontier.json"
    given = ["--keep", "0.5", "0.25", "--seeds", "0", "1", "--recipe", "recipes/dehaze_full.yaml"]

    frontier.main([*given, "--quick", "--json", str(path), "--set", "task.max_test_images=1"])

    record = read_record(path)
    assert made == [
        (keep, seed, "task.max_test_images=1") for keep in (0.5, 0.25) for seed in (0, 1)
    ]
    assert record["recipe"] == "dehaze_full.yaml"
    assert list(record["test_digests"]) == ["builtin"]
    assert "| student, 50.0% of the MACs asked | " in capsys.readouterr().out


def test_a_peer_goes_through_the_distillation_of_the_recipe_once(tmp_path, monkeypatch):
    def made():
        few = [*QUICK, "stages.adapt=off", "seed=3"]
        return Compressor(recipe=load_recipe(ROOT / "recipes" / "dehaze.yaml", few))

    file = tmp_path / "peers" / "random.json"
    before = random_student(made())
    row = in_recipe.recipe_row("random", 0.5, made(), file)
    monkeypatch.setattr(in_recipe, "attempt", None)

    assert 0.45 * row["teacher"]["macs"] < row["student"]["macs"] <= 0.5 * row["teacher"]["macs"]
    assert row["student"]["psnr_db"]["builtin"] != before
    assert in_recipe.recipe_row("random", 0.5, None, file) == row


def test_rows_of_peers_are_kept_apart_by_recipe(tmp_path, monkeypatch, capsys):
    files = []
    monkeypatch.setattr(frontier, "_run", lambda *_: frontier_record()["rows"][0])
    monkeypatch.setattr(
        frontier, "recipe_row", lambda *given: files.append(given[-1].name) or {"error": "no"}
    )
    given = ["--keep", "0.25", "--out", str(tmp_path), "--json", str(tmp_path / "a.json")]
    for changed in ("task.crop=64", "task.crop=64", "task.crop=96"):
        frontier.main([*given, "--peers", "random", "--set", changed])

    first, again, other = files
    assert re.fullmatch(r"random-keep-0.25-seed-0-[0-9a-f]{8}\.json", first)
    assert first == again != other
    assert "`random` at 25.0%: no." in capsys.readouterr().out


def random_student(compressor):
    """Return the PSNR of the student that `random` hands to the distillation."""
    task = compressor.task
    subject = in_recipe.subject_of("builtin", task, task.build_teacher(), seed=3, tests={})
    return task.measure(in_recipe.attempt("random", subject, 0.5, limit_s=1.0).student)["psnr_db"][
        "builtin"
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("task.teacher=random", "take a recipe that names it"),
        ("stages.distill=off", "the recipe has no stage 'distill'"),
    ],
)
def test_a_recipe_that_peers_cannot_follow_is_said(tmp_path, changed, said):
    recipe = load_recipe(ROOT / "recipes" / "dehaze.yaml", [changed, "stages.adapt=off"])

    with pytest.raises(SettingError, match=said):
        in_recipe.recipe_row("random", 0.5, Compressor(recipe=recipe), tmp_path / "row.json")


def test_a_peer_that_fails_and_one_whose_channels_nobody_knows(tmp_path, monkeypatch):
    few = [*QUICK, "stages.adapt=off"]
    recipe = load_recipe(ROOT / "recipes" / "dehaze.yaml", few)
    monkeypatch.setattr(in_recipe, "attempt", lambda *_, **__: "ValueError: no")
    failed = in_recipe.recipe_row("x", 0.5, Compressor(recipe=recipe), tmp_path / "a.json")
    teacher = Compressor(recipe=recipe).task.build_teacher()
    monkeypatch.setattr(in_recipe, "attempt", lambda *_, **__: Pruned(teacher, None))
    row = in_recipe.recipe_row("x", 0.5, Compressor(recipe=recipe), tmp_path / "b.json")

    assert failed == {"error": "ValueError: no"}
    assert row["error"].endswith("is unknown")


def test_an_unknown_peer_is_said_before_anything_runs(capsys):
    with pytest.raises(SystemExit):
        frontier.main(["--peers", "tp:magnitud:global"])

    assert "did you mean tp:magnitude:global?" in capsys.readouterr().err


def test_published_networks_need_the_folder_of_their_weights(monkeypatch, capsys):
    monkeypatch.setattr(frontier, "default_data", lambda: None)

    with pytest.raises(SystemExit):
        frontier.main(["--published", "gcanet"])

    assert "give the folder that holds weights/ by --data" in capsys.readouterr().err
