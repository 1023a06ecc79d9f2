"""Time by layer, blame and the plot of cost against quality, in reports of made-up runs."""

import json
import re

import jsonschema
import pytest
from torch import nn

from coa_compress.artifacts import Reference
from coa_compress.profiling.layer_times import LayerTime, LayerTimes
from coa_compress.report import figures, frontier
from coa_compress.report.blame import blame
from coa_compress.report.content import Report
from coa_compress.report.document import schema, to_document, to_json
from coa_compress.report.html import to_html
from coa_compress.report.layers import ELSEWHERE, describe_layers, layer_rows, shown_rows
from coa_compress.report.markdown import to_markdown
from coa_compress.report.reading import report_of
from coa_compress.stages.files import save_pictures
from coa_compress.stages.measure import Measure, MeasureSettings
from coa_compress.stages.state import State

SIZE = [1, 3, 8, 8]


def timed(layers, elsewhere=1.0):
    made = tuple(
        LayerTime(path=path, kind=kind, params=params, ms=ms, least_ms=least)
        for path, (kind, params, ms, least) in layers.items()
    )
    return LayerTimes(
        total_ms=sum(layer.ms for layer in made) + elsewhere,
        elsewhere_ms=elsewhere,
        elsewhere_least_ms=elsewhere,
        layers=made,
        rounds=5,
    )


def layer(kind="Conv2d", params=100, ms=1.0, least=None):
    return kind, params, ms, ms if least is None else least


def described(teacher, student, macs, elsewhere=(1.0, 0.25)):
    times = {"teacher": timed(teacher, elsewhere[0]), "student": timed(student, elsewhere[1])}
    by_role = {role: {path: pair[i] for path, pair in macs.items()} for i, role in enumerate(times)}
    return describe_layers(times, by_role)


def reported(layer_times, *, latency=0.25, budget=None, **changes):
    network = {"macs": 1000, "params": 400, "latency_ms": 100.0, "psnr_db": {"test": 30.0}}
    student = {
        "macs": 250,
        "params": 100,
        "latency_ms": 100.0 * latency,
        "psnr_db": {"test": 29.0},
    }
    values = {
        "name": "x",
        "title": "X",
        "measurements": {"teacher": network, "student": student},
        "allocation": {"budget": {"keep_macs": 0.25, "keep_latency": None} | (budget or {})},
        "provenance": {"example_size": SIZE},
        "layer_times": layer_times,
    }
    return Report(**{**values, **changes})


TEACHER = {
    "stem": layer(ms=10.0),
    "mix": layer("depthwise Conv2d", ms=10.0),
    "norm": layer("BatchNorm2d", params=4, ms=10.0),
    "norm2": layer("BatchNorm2d", params=4, ms=10.0),
    "body": layer(ms=50.0),
    "head": layer(ms=9.0),
}
MACS = {
    "stem": (100, 100),
    "mix": (10, 3),
    "body": (800, 130),
    "head": (90, 17),
}


def slow_run(**changes):
    student = {
        "stem": layer(ms=10.0),
        "mix": layer("depthwise Conv2d", params=30, ms=9.0),
        "norm": layer("BatchNorm2d", params=2, ms=9.0),
        "norm2": layer("BatchNorm2d", params=2, ms=9.0),
        "body": layer(params=16, ms=7.0),
        "head": layer(params=20, ms=8.0),
    } | changes
    return described(TEACHER, student, MACS)


def even_run():
    student = {n: (k, p // 4 or 1, ms / 4, ms / 4) for n, (k, p, ms, _) in TEACHER.items()}
    return described(TEACHER, student, {n: (a, a // 4) for n, (a, _) in MACS.items()})


def plain(text):
    return text.replace(figures.NARROW_SPACE, " ")


def test_the_worst_three_are_named_with_the_reason():
    found = blame(reported(slow_run(), latency=0.52))

    assert (
        plain(found.summary) == "The student keeps 25.0 % of the MACs, but 52.0 % of the latency."
    )
    first, second, third = map(plain, found.layers)
    assert first.startswith("BatchNorm2d, 2 layers: 18.0 ms, 34.4 % of the student's pass; 90.0 %")
    assert first.endswith("no MACs, so that a budget in MACs does not see it.")
    assert second.startswith("`stem` (Conv2d): 10.0 ms")
    assert second.endswith("because it was not cut.")
    assert third.startswith("`mix` (depthwise Conv2d)")
    assert "depthwise convolution has few MACs" in third
    assert "`keep_latency: 0.25` under `allocate`" in found.advice


def test_operations_outside_of_layers_and_narrow_layers_can_be_to_blame():
    student = {n: (k, p // 4 or 1, ms / 4, ms / 4) for n, (k, p, ms, _) in TEACHER.items()}
    student["head"] = layer(params=20, ms=8.0)
    student["body"] = layer(params=20, ms=25.0)
    macs = {n: (a, a // 4) for n, (a, _) in MACS.items()} | {"body": (800, 500)}
    found = blame(reported(described(TEACHER, student, macs, (30.0, 25.0)), latency=0.6))

    outside, body, head = found.layers
    assert outside.startswith("Outside of all layers: ")
    assert "more than the network" in body
    assert "too narrow to use the device well" in head


@pytest.mark.parametrize(
    "report",
    [
        reported(even_run(), latency=0.6),
        reported(slow_run(), latency=0.3),
        reported(slow_run(), latency=0.6, budget={"keep_latency": 0.5}),
        reported(slow_run(), latency=0.6, budget={"max_latency_ms": 5.0}),
        reported(slow_run(), latency=0.6, budget={"keep_macs": None}),
        reported(slow_run(), latency=0.6, allocation={}),
        reported(None, latency=0.6),
    ],
    ids=["even", "fast", "asked for time", "limited time", "no budget", "no allocation", "untimed"],
)
def test_nothing_is_said_where_nothing_is_to_blame(report):
    assert blame(report) is None
    assert to_document(report)["blame"] is None
    assert 'class="blame"' not in to_html(report)
    assert "keep_latency: 0" not in to_markdown(report)


def test_a_busy_moment_of_the_machine_accuses_no_layer():
    disturbed = {
        name: (kind, params, ms, TEACHER[name][2] / 4)
        for name, (kind, params, ms, _) in {
            "stem": layer(ms=10.0),
            "mix": layer("depthwise Conv2d", ms=9.0),
            "norm": layer("BatchNorm2d", params=2, ms=9.0),
            "norm2": layer("BatchNorm2d", params=2, ms=9.0),
            "body": layer(ms=40.0),
            "head": layer(ms=8.0),
        }.items()
    }
    assert blame(reported(described(TEACHER, disturbed, MACS), latency=0.8)) is None


def test_rows_are_sorted_and_add_up_to_the_whole():
    names = [f"layer{i}" for i in range(40)]
    teacher = {name: layer(ms=1.0 + i) for i, name in enumerate(names)}
    student = {name: layer(params=50, ms=0.1 * (i + 1)) for i, name in enumerate(names)}
    times = described(teacher, student, dict.fromkeys(names, (10, 5)), (2.0, 0.05))
    rows = shown_rows(layer_rows(reported(times)))

    assert len(rows) == 17
    assert rows[0].label == "layer39"
    assert rows[-2].label == ELSEWHERE
    assert rows[-1].label == "25 other layers"
    assert sum(row.student_ms for row in rows) == pytest.approx(times["total_ms"]["student"])
    assert sum(row.teacher_ms for row in rows) == pytest.approx(times["total_ms"]["teacher"])
    assert sum(row.teacher_macs for row in rows) == 400
    assert plain(rows[0].macs_kept) == "50.0 %"


def test_a_single_layer_is_never_summed_as_the_rest():
    names = [f"layer{i}" for i in range(16)]
    some = {name: layer() for name in names}
    rows = shown_rows(layer_rows(reported(described(some, some, {}))))
    assert len(rows) == 17
    assert not any("other" in row.label for row in rows)


def test_layers_of_one_network_alone_are_shown_with_dashes():
    times = described({"a": layer()}, {"b": layer()}, {"a": (5, 0)})
    rows = {row.label: row for row in layer_rows(reported(times))}
    assert rows["b"].time_kept == figures.UNKNOWN
    assert rows["a"].student_ms == 0


def test_macs_outside_of_layers_count_elsewhere():
    times = {"teacher": timed({"a": layer()}), "student": timed({"a": layer()})}
    macs = {"teacher": {"a": 5, "": 7, "block": 1}, "student": {"a": 5}}
    assert describe_layers(times, macs)["elsewhere"]["macs"] == {"teacher": 8, "student": 0}


def reference(name="known", cost=200, quality=29.5, size=SIZE):
    return Reference(
        name=name,
        params=cost,
        macs=cost,
        example_size=tuple(size),
        measures={"psnr_db": {"test": quality}},
    )


def test_new_keys_follow_the_schema_and_are_read_again():
    report = reported(slow_run(), latency=0.6, references=[reference()])
    document = json.loads(to_json(report))

    jsonschema.validate(document, schema(), jsonschema.Draft202012Validator)
    assert len(document["blame"]["layers"]) == 3
    again = report_of(document)
    assert to_json(again) == to_json(report)
    assert to_html(again) == to_html(report)
    for key in ("layer_times", "blame", "references"):
        del document[key]
    jsonschema.validate(document, schema(), jsonschema.Draft202012Validator)
    old = report_of(document)
    assert (old.layer_times, list(old.references)) == (None, [])
    assert 'id="layers"' not in to_html(old)
    assert "Time by layer" not in to_markdown(old)


def test_a_stage_done_by_an_older_version_has_no_times(tmp_path):
    save_pictures(tmp_path, ())
    (tmp_path / "measurements.json").write_text('{"measurements": {}, "notes": ["one"]}')
    state = Measure(MeasureSettings()).load(State(teacher=nn.Identity()), tmp_path)
    assert (state.layer_times, state.notes) == (None, ("one",))


def test_the_pages_tell_the_same():
    report = reported(slow_run(), latency=0.6, references=[reference()])
    page, text = to_html(report), to_markdown(report)

    assert "<code>keep_latency: 0.25</code>" in page
    for words in ("BatchNorm2d, 2 layers", "known", "Time by layer"):
        assert words in page
        assert words in text
    assert re.findall(r'<section id="(\w+)"', page) == [
        "comparison",
        "frontier",
        "layers",
        "recipe",
        "provenance",
    ]


def test_the_plot_shows_the_run_and_the_networks_known_on_its_split():
    known = [reference(), reference("of another size", 300, 29.0, [1, 3, 16, 16])]
    macs, params = frontier.plots(reported(None, references=known))

    assert [point.label for point in macs.own] == ["Teacher", "Student"]
    assert [(point.label, point.number) for point in macs.others] == [("known", 1)]
    assert [point.label for point in params.others] == ["known", "of another size"]
    teacher, student = macs.own
    assert student.at[0] < teacher.at[0]
    assert student.at[1] > teacher.at[1]
    for point in (*macs.own, *macs.others):
        assert frontier.LEFT < point.at[0] < frontier.WIDTH - frontier.RIGHT
        assert frontier.TOP < point.at[1] < frontier.HEIGHT - frontier.BOTTOM


def test_a_network_of_the_run_that_was_measured_before_is_drawn_once():
    same = [reference("teacher before", 1000, 30.001), reference()]
    macs = frontier.plots(reported(None, references=same))[0]
    assert [point.label for point in macs.others] == ["known"]


def test_no_plot_without_two_networks_or_a_truth():
    alone = reported(None)
    only = {"teacher": alone.measurements["teacher"]}
    assert frontier.plots(reported(None, measurements=only)) == []
    likeness = {
        role: {"macs": 5, "params": 5, "psnr_to_teacher_db": {"test": 30.0}}
        for role in ("teacher", "student")
    }
    assert frontier.plots(reported(None, measurements=likeness)) == []
