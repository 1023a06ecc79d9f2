"""The comparison of pruning methods, on a network that is pruned in an instant."""

import json
import re
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import prune
from benchmarks.networks.check import figures
from benchmarks.networks.dehazeformer import DehazeFormerT
from benchmarks.networks.gcanet import GCANet
from benchmarks.networks.published import default_data, load_published
from benchmarks.peers import comparison, methods, subject
from benchmarks.peers.matching import matched_cut
from benchmarks.peers.methods import attempt, method
from benchmarks.peers.subject import Choice, Pruned, Subject, load_subject
from coa_compress.artifacts import Batch
from coa_compress.errors import DataError, SettingError, WeightsError
from coa_compress.profiling.counting import count_params
from coa_compress.structure.analysis import analyze
from coa_compress.tasks.dehazing.sources import Example


class TinyTask:
    def training_batch(self, batch_size, generator):
        clear = torch.rand(batch_size, 3, 16, 16, generator=generator)
        return Batch(clear * 0.5 + 0.4, clear)


def tiny_subject(name="builtin", choice=None, stack=None, *, seed=0, width=16):
    del choice, stack
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1)
    ).eval()
    image = torch.rand(3, 24, 24)
    return Subject(
        name=name,
        seed=seed,
        teacher=teacher,
        task=TinyTask(),
        example=torch.rand(1, 3, 16, 16),
        batches=(TinyTask().training_batch(5, torch.Generator().manual_seed(seed)),),
        tests={"made": (Example("one", lambda: (image, image)),)},
        outputs=("2",),
        shuffled=(),
    )


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(prune, "load_subject", tiny_subject)
    path = tmp_path / "results" / "prune.json"

    def run(*arguments):
        prune.main(["--json", str(path), "--budgets", "0.5", *arguments])
        return json.loads(path.read_text())

    return run


def test_a_row_is_within_the_budget_and_says_what_it_reached(tiny, capsys):
    record = tiny("--methods", "ours", "random", "--steps", "0", "2", "--seeds", "0", "1")
    assert [(r["method"], r["seed"]) for r in record["rows"]] == [
        ("ours", 0),
        ("random", 0),
        ("ours", 1),
        ("random", 1),
    ]
    for row in record["rows"]:
        assert row["macs_kept"] == 0.5
        assert row["latency"] > 0
        assert set(row["psnr_distilled"]) == {"2"}
    ours = record["rows"][0]
    refitted, one_shot = ours["psnr_refitted"]["made"], ours["psnr_one_shot"]["made"]
    assert refitted["teacher"] > one_shot["teacher"]
    assert "| 50.0% | `ours` | 50.0% |" in capsys.readouterr().out


def test_rows_are_made_once_and_missing_distillations_are_added(tiny, monkeypatch):
    first = tiny("--methods", "ours")["rows"]
    made = []
    monkeypatch.setattr(prune, "first_row", lambda *given, **_: made.append(given))
    second = tiny("--methods", "ours", "--steps", "1")["rows"]
    assert made == []
    assert set(second[0].pop("psnr_distilled")) == {"1"}
    assert first[0].pop("psnr_distilled") == {}
    assert first == second


def test_a_distillation_that_was_stopped_goes_on_from_its_checkpoint(tiny, monkeypatch):
    fit, seen = comparison.fit, []

    def stopped(job, settings, *, folder, **given):
        settings = replace(settings, checkpoint_every=1)

        def progress(done, total, values):
            seen.append((folder.name, done))
            if seen[-1][1] == 2 and len(seen) == 2:
                raise KeyboardInterrupt

        return fit(job, settings, folder=folder, progress=progress, **given)

    monkeypatch.setattr(comparison, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        tiny("--methods", "ours", "--steps", "3")
    rows = tiny("--methods", "ours", "--steps", "3")["rows"]

    assert seen == [("builtin-ours-0.5-0-3", done) for done in (1, 2, 3)]
    assert set(rows[0]["psnr_distilled"]) == {"3"}


def test_only_the_students_of_the_named_budgets_are_distilled(tiny):
    rows = tiny(
        "--methods", "ours", "--budgets", "0.75", "0.5", "--steps", "1", "--steps-at", "0.5"
    )["rows"]
    assert [set(row["psnr_distilled"]) for row in rows] == [set(), {"1"}]


def test_rows_of_other_weights_are_made_again(tiny, monkeypatch):
    before = tiny("--methods", "ours", "uniform")
    monkeypatch.setattr(
        prune, "load_subject", lambda *given, **named: tiny_subject(*given, **named, width=32)
    )
    after = tiny("--methods", "ours")
    assert [row["method"] for row in after["rows"]] == ["ours"]
    assert before["teachers"]["builtin"]["digest"] != after["teachers"]["builtin"]["digest"]


def test_rows_of_other_settings_are_not_mixed(tiny):
    tiny("--methods", "ours")
    with pytest.raises(DataError, match=r"holds rows of .*: give another --json"):
        tiny("--methods", "ours", "--images", "3")


def test_an_error_of_a_peer_is_a_row(tiny, monkeypatch, capsys):
    def fails(_subject, _keep):
        message = "no\nsuch   layer"
        raise IndexError(message)

    monkeypatch.setitem(methods.METHODS, "tp:taylor:global", fails)
    record = tiny("--methods", "tp:taylor:global", "--steps", "1")
    assert record["rows"][0]["error"] == "IndexError: no such layer"
    shown = capsys.readouterr().out
    assert "| 50.0% | `tp:taylor:global` | - | - | - | - | - |" in shown
    assert "No result: `tp:taylor:global`: IndexError: no such layer." in shown


@pytest.fixture
def summary_row():
    """Return a function that makes a row with what the summary reads."""

    def row(method, one_shot, refitted, error=None, kept=0.5, **distilled):
        def figures(value):
            return {"made": {"truth": value - 1, "teacher": value}}

        return {
            "teacher": "t",
            "keep_macs": 0.5,
            "macs_kept": kept,
            "method": method,
            "error": error,
            "psnr_one_shot": figures(one_shot),
            "psnr_refitted": figures(refitted),
            "psnr_distilled": {n[1:]: figures(value) for n, value in distilled.items()},
        }

    return row


def test_the_summary_holds_ours_against_the_best_peers_before_and_after_distillation(summary_row):
    row = summary_row
    rows = [
        row("ours", 20, 39, n500=40, n2000=41),
        row("ours", 20, 39, n500=42),
        row("tp:a:global", 26, 31, n500=33, n2000=34),
        row("tp:b:global", 29, 30, kept=0.6, n500=32),
        row("tp:c:global", 50, 50, error="IndexError"),
    ]
    known = {"t": {"psnr": {"made": {"truth": 24.0}}}}

    shown = prune.summary({"teachers": known, "rows": rows})
    alone = prune.summary({"teachers": known, "rows": rows[1:2]})
    failed = prune.summary({"teachers": known, "rows": [rows[1], rows[4]]})

    line = "| `t` (24.00 dB, `made`) | 50.0% | 38.00"
    best = "28.00 (29.00) `tp:b:global`, missed: 60.0% | 29.00 (30.00)"
    ours = "40.00 ± 1.41 (41.00 ± 1.41), 500 steps"
    other = "32.00 (33.00) `tp:a:global`"
    assert f"{line} ± 0.00 (39.00 ± 0.00) | {best} | {ours} | {other} |" in shown
    assert f"{line} (39.00) | not run | - | - | - |" in alone
    at_the_peers_cost = {**row("ours", 30, 41), "keep_macs": 0.6}
    assert prune.summary({"teachers": known, "rows": [*rows, at_the_peers_cost]}) == shown
    assert f"{line} (39.00) | none takes it | - | - | - |" in failed


def test_the_summary_shows_the_steps_of_most_seeds(summary_row):
    pair = [summary_row(name, 29, 30, n500=32, n2000=36) for name in ("ours", "tp:b:global")]
    seeds = [summary_row(name, 29, 30, n500=34) for name in ("ours", "tp:b:global")]
    known = {"t": {"psnr": {"made": {"truth": 24.0}}}}

    longest = prune.summary({"teachers": known, "rows": pair})
    most = prune.summary({"teachers": known, "rows": pair + seeds})

    assert "| 35.00 (36.00), 2000 steps | 35.00 (36.00) `tp:b:global` |" in longest
    both = "32.00 ± 1.41 (33.00 ± 1.41)"
    assert f"| {both}, 500 steps | {both} `tp:b:global` |" in most


def test_the_plot_shows_ours_other_libraries_and_the_control(tiny):
    record = tiny("--methods", "ours", "magnitude", "random")
    record["rows"].append({**record["rows"][0], "method": "tp:taylor:global", "error": "OOM"})
    plot = prune.plot(record)

    for text in ("ours", "random", "teacher", "builtin, made", "MACs reached (%)", "50"):
        assert f">{text}</text>" in plot
    for text in ("magnitude", "tp:taylor:global"):
        assert f">{text}</text>" not in plot


def test_an_error_of_ours_is_an_error(monkeypatch):
    def fails(_subject, _keep):
        raise IndexError

    monkeypatch.setitem(methods.METHODS, "ours", fails)
    with pytest.raises(IndexError):
        attempt("ours", tiny_subject(), 0.5, limit_s=1)


def test_a_peer_that_takes_too_long_is_stopped(monkeypatch):
    def forever(_subject, _keep):
        while True:
            pass

    monkeypatch.setitem(methods.METHODS, "tp:taylor:global", forever)
    found = attempt("tp:taylor:global", tiny_subject(), 0.5, limit_s=0.05)
    assert found == "TimeoutError: no result in 0.05 s of processor time"


def test_a_peer_may_be_given_all_the_time_it_wants(monkeypatch):
    pruned = Pruned(torch.nn.Identity(), None, refitted=False)
    monkeypatch.setitem(methods.METHODS, "tp:taylor:global", lambda _subject, _keep: pruned)

    assert attempt("tp:taylor:global", tiny_subject(), 0.5, limit_s=float("inf")) is pruned


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "hessian"])
@pytest.mark.parametrize("scope", ["global", "isomorphic", "local"])
def test_torch_pruning_meets_the_budget_and_our_refit_takes_its_cut(importance, scope):
    pytest.importorskip("torch_pruning")
    given = tiny_subject(width=64)
    pruned = attempt(f"tp:{importance}:{scope}", given, 0.5, limit_s=60)
    assert isinstance(pruned, Pruned)
    assert count_params(pruned.student) <= 0.51 * count_params(given.teacher)
    kept = pruned.cut.slices["0.weight"][0]
    assert torch.equal(pruned.student[0].weight, given.teacher[0].weight[kept])


def test_a_smaller_budget_goes_on_with_the_loop_of_a_larger_one(monkeypatch):
    tp = pytest.importorskip("torch_pruning")
    name, shared = "tp:taylor:global", tiny_subject(width=64)
    attempt(name, shared, 0.7, limit_s=60)
    steps, step = [], tp.pruner.BasePruner.step
    monkeypatch.setattr(tp.pruner.BasePruner, "step", lambda self: (steps.append(1), step(self))[1])
    after = attempt(name, shared, 0.4, limit_s=60)
    going_on = len(steps)
    alone = attempt(name, tiny_subject(width=64), 0.4, limit_s=60)
    assert going_on < len(steps) - going_on
    for one, other in zip(after.student.parameters(), alone.student.parameters(), strict=True):
        assert torch.equal(one, other)
    again = attempt(name, shared, 0.7, limit_s=60)
    assert count_params(again.student) > count_params(after.student)


def test_the_cut_of_another_library_is_told_from_the_weights():
    given = tiny_subject()
    kept = torch.tensor([1, 2, 7, 11])
    cut = analyze(given.teacher, given.example).cut({"0": kept})
    found = matched_cut(given.teacher, cut.student)
    assert {
        name: {d: p.tolist() for d, p in dims.items()} for name, dims in found.slices.items()
    } == {
        "0.weight": {0: kept.tolist()},
        "0.bias": {0: kept.tolist()},
        "2.weight": {1: kept.tolist()},
    }
    with torch.no_grad():
        cut.student[0].weight[0, 0, 0, 0] += 1
    assert matched_cut(given.teacher, cut.student) is None


def test_unknown_methods_are_an_error_with_close_matches():
    with pytest.raises(SettingError, match="no method 'our': did you mean ours"):
        method("our")
    assert method("ours:taylor+uniform").keywords == {"scorer": "taylor", "allocator": "uniform"}


def test_published_teachers_need_a_folder(tmp_path):
    with ExitStack() as stack:
        with pytest.raises(DataError, match="teacher 'gcanet' needs its weights and images"):
            load_subject("gcanet", Choice(data=None), stack)
        with pytest.raises(DataError, match=r"no .*train/clear: give a data folder"):
            load_subject("gcanet", Choice(data=tmp_path), stack)
    with pytest.raises(DataError, match=re.escape("no published network 'gcnet': did you mean")):
        load_published("gcnet", tmp_path)
    with pytest.raises(WeightsError, match=r"cannot read .*wacv_gcanet_dehaze.pth"):
        load_published("gcanet", tmp_path)


@pytest.mark.parametrize(("network", "params"), [(GCANet, 702_818), (DehazeFormerT, 683_300)])
def test_published_networks_have_their_size_and_take_any(network, params):
    torch.manual_seed(0)
    model = network().eval()
    assert count_params(model) == params
    with torch.no_grad():
        assert model(torch.rand(2, 3, 33, 42)).shape == (2, 3, 33, 42)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("gcanet", 25.0), ("dehazeformer_t", 30.0)])
def test_published_weights_dehaze(name, least):
    data = default_data()
    if data is None:
        pytest.skip("needs the development data")
    ((_, psnr, count),) = figures(name, data, splits=["sots_indoor"], images=1)
    assert count == 1
    assert psnr > least


def test_the_built_in_subject_is_calibrated_on_built_in_images():
    with ExitStack() as stack:
        found = load_subject("builtin", Choice(data=None, images=1, crop=32, calibration=2), stack)
    assert [len(batch.input) for batch in found.batches] == [2]
    hazy, clear = found.tests["builtin"][0].load()
    assert hazy.shape == clear.shape == (3, 32, 32)
    assert subject.TEACHERS[0] == found.name
