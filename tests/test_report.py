"""The report of a made-up run: its document, its pages and its files."""

import base64
import html
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from coa_compress.artifacts import (
    Allocation,
    Budget,
    History,
    Picture,
)
from coa_compress.errors import DataError
from coa_compress.gate import DomainMeasures, GateRules, judge
from coa_compress.profiling.layer_times import LayerTime, LayerTimes
from coa_compress.report import curves, figures, summary
from coa_compress.report.closer import closer_look
from coa_compress.report.content import Report, describe_allocation, describe_gate
from coa_compress.report.document import schema, to_document, to_json
from coa_compress.report.html import to_html
from coa_compress.report.images import data_uri
from coa_compress.report.layers import describe_layers
from coa_compress.report.markdown import to_markdown
from coa_compress.report.write import read_report, write_report

ROLES = ("teacher", "student")


def measured(macs, params, latency_ms, psnr_db, haze):
    return {
        "params": params,
        "macs": macs,
        "latency_ms": latency_ms,
        "latency_p10_ms": latency_ms * 0.97,
        "latency_p90_ms": latency_ms * 1.08,
        "peak_memory_mb": macs / 4e7,
        "file_bytes": 4 * params + 4096,
        "macs_fvcore": round(macs * 1.01),
        "macs_thop": None,
        "psnr_db": {"synthetic": psnr_db, "real pairs": psnr_db - 9},
        "ssim": {"synthetic": 0.93, "real pairs": 0.61},
        "dark_channel_density": {"real photographs": haze},
    }


def make_allocation():
    names = ["stem", *(f"encoder.{i}.{j}.value" for i in range(4) for j in range(2)), "head"]
    teacher = {name: 16 + 16 * (i // 2) for i, name in enumerate(names)}
    kept = {
        name: torch.arange(max(8, width // (2 + i % 3)))
        for i, (name, width) in enumerate(teacher.items())
    }
    scores = {
        name: torch.linspace(1, 0.1, width, dtype=torch.float64) for name, width in teacher.items()
    }
    allocation = Allocation(
        kept=kept,
        teacher_widths=teacher,
        macs=246_000_000,
        params=270_000,
        teacher_macs=999_300_000,
        teacher_params=1_012_000,
    )
    return describe_allocation(allocation, Budget(keep_macs=0.25), scores=scores)


def gate_measures(haze, distance, skill):
    return DomainMeasures(
        defects={"fade": haze, "dark_channel_density": [0.3, 0.3]},
        qualities={"niqe": distance},
        skill=skill,
        lower_is_better=["niqe"],
    )


def make_gate(*, accepted=True):
    before = gate_measures([0.4, 0.424], [4.0, 4.2], [26.72])
    after = gate_measures([0.35, 0.36], [3.98, 4.22], [26.61 if accepted else 26.02])
    return describe_gate(judge(before, after, GateRules()), labels={"skill": "PSNR (dB)"})


def make_history(n, start):
    steps = tuple(range(10, 10 * n + 1, 10))
    decay = [start * math.exp(-3 * i / n) + 0.004 * (1 + math.sin(i)) for i in range(n)]
    return History(
        steps=steps,
        losses={"output": tuple(decay), "features": tuple(2.1 * value + 0.01 for value in decay)},
        validation=tuple((step, 20 + 7 * (1 - math.exp(-step / (3 * n)))) for step in steps[::5]),
    )


def picture(title, columns, size=(24, 32)):
    ramp = torch.linspace(0, 255, size[1]).to(torch.uint8).view(1, -1, 1).expand(*size, 3)
    return Picture(title, dict.fromkeys(columns, ramp), {columns[-1]: "27.1 dB"})


def make_report(**changes):
    values = {
        "name": "dehaze",
        "title": "Dehazing, a quarter of the work",
        "measurements": {
            "teacher": measured(999_300_000, 1_012_000, 148.2, 27.13, 0.371),
            "student": measured(246_000_000, 270_000, 51.7, 26.72, 0.412),
            "adapted": measured(246_000_000, 270_000, 51.9, 26.61, 0.355),
        },
        "allocation": make_allocation(),
        "gate": make_gate(),
        "histories": {"distill": make_history(60, 0.2), "adapt": make_history(12, 0.02)},
        "pictures": [
            picture("harbor", ("hazy", "teacher", "student", "adapted", "truth")),
            picture("road in fog", ("hazy", "teacher", "student", "adapted")),
        ],
        "recipe": {"name": "dehaze", "seed": 0, "stages": {"allocate": {"keep_macs": 0.25}}},
        "recipe_text": "name: dehaze\nseed: 0\nstages:\n  allocate:\n    keep_macs: 0.25\n",
        "provenance": {
            "versions": {"python": "3.11.4", "torch": "2.13.0", "coa_compress": "0.1.0"},
            "seed": 0,
            "device": "cpu",
            "platform": "Linux x86_64",
            "threads": 2,
            "commit": None,
            "example_size": [1, 3, 256, 256],
            "started": "2026-11-23T12:00:00Z",
            "finished": "2026-11-23T12:09:41Z",
            "counter": "dispatcher, multiply-accumulates, decimal",
        },
        "stage_seconds": {
            "score": 12.1,
            "allocate": 0.4,
            "prune": 1.2,
            "refit": 9.0,
            "distill": 431.0,
            "adapt": 127.0,
        },
        "notes": ["thop cannot count this network", "real pairs are few: 26 images"],
    }
    return Report(**{**values, **changes})


class Tags(HTMLParser):
    VOID = frozenset({"meta", "img", "input", "line", "circle", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.references, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.references += [values[key] for key in ("src", "href") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def plain(text):
    return text.replace(figures.NARROW_SPACE, " ").replace(figures.MINUS, "-")


def test_the_document_follows_its_schema():
    jsonschema.Draft202012Validator.check_schema(schema())
    for report in (
        make_report(),
        make_report(gate=None, pictures=(), histories={}),
        make_report(gate=make_gate(accepted=False)),
        Report(name="x", title="x", measurements={}),
    ):
        jsonschema.validate(json.loads(to_json(report)), schema(), jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("schema_version",), 1, "2 was expected"),
        (("final",), "teacher", "is not one of"),
        (("measurements", "teacher", "macs"), 1.5, "1.5 is not of type"),
        (("gate", "accepted"), "yes", "is not"),
        (("histories", "distill", "validation"), [[1, 2, 3]], "at most 2 items"),
        (("extra",), 1, "extra"),
    ],
)
def test_the_schema_refuses_what_is_wrong(path, value, complaint):
    document = json.loads(to_json(make_report()))
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError, match=complaint):
        jsonschema.validate(document, schema(), jsonschema.Draft202012Validator)


@settings(deadline=None, max_examples=15)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(
            st.floats(),
            st.integers(),
            st.dictionaries(st.text(max_size=3), st.floats(), max_size=3),
        ),
        max_size=4,
    )
)
def test_any_measurement_can_be_written_and_shown(values):
    measurements = {"teacher": values, "student": values}
    report = Report(name="x", title="x", measurements=measurements)

    document = json.loads(to_json(report))

    assert document["measurements"]["teacher"].keys() == values.keys()
    parsed(to_html(report))
    to_markdown(report)


def test_numbers_that_json_lacks_become_null_and_tensors_numbers():
    document = to_document(
        Report(
            name="x",
            title="x",
            measurements={
                "teacher": {"macs": torch.tensor(3), "psnr_db": {"a": math.inf, "b": math.nan}}
            },
            provenance={"seed": np.int64(4)},
        )
    )
    assert document["measurements"]["teacher"] == {"macs": 3, "psnr_db": {"a": None, "b": None}}
    assert document["provenance"] == {"seed": 4}


def test_what_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match=r"recipe.task of the report is a object"):
        to_document(Report(name="x", title="x", measurements={}, recipe={"task": object()}))


def test_the_headline_tells_the_run():
    assert plain(summary.headline(make_report())) == (
        "The student keeps 24.6 % of the MACs and 26.7 % of the parameters, "
        "loses 0.52 dB on average over 2 test sets, and was adapted to real inputs."
    )


def test_a_refused_adaptation_is_in_the_headline_and_the_student_counts():
    report = make_report(gate=make_gate(accepted=False))

    assert summary.final_role(report) == "student"
    assert "loses 0.41" in summary.headline(report)
    assert summary.headline(report).endswith(
        "2 test sets; its adaptation to real inputs was refused."
    )
    assert summary.column_titles(report)[-1] == "Adapted (refused)"
    page = to_html(report)
    assert "Refused" in page
    assert "skill on labelled data fell by 0.70" in page
    assert [rule.held for rule in summary.gate_rules(report)] == [True, True, True, False]


def test_a_gain_is_no_loss():
    measurements = {"teacher": {"psnr_db": {"a": 30.0}}, "student": {"psnr_db": {"a": 30.2}}}
    report = Report(name="x", title="x", measurements=measurements)
    assert plain(summary.headline(report)) == "The student gains 0.20 dB."


def test_the_gate_table_states_the_rules():
    report = make_report()
    rules = summary.gate_rules(report)
    assert [rule.label for rule in rules] == ["FADE", "Dark channel density", "NIQE", "PSNR (dB)"]
    assert [plain(rule.change) for rule in rules] == [
        "-13.8 % ± 1.7 %",
        "±0.0 % ± 0.0 %",
        "±0.0 % ± 0.5 %",
        "-0.11",
    ]
    assert [plain(rule.demand) for rule in rules] == [
        "falls by at least 1.0 %",
        "never rises",
        "rises by at most 2.0 %",
        "falls by at most 0.3",
    ]
    for text in (to_html(report), to_markdown(report)):
        assert "Each rule must hold by 1 standard error (±)" in text


def test_a_gate_on_means_says_so():
    gate = make_gate()
    gate["rules"]["standard_errors"] = 0.0
    assert "the rules look at the means" in to_markdown(make_report(gate=gate))
    gate["findings"][0] |= {"change": None, "standard_error": None}
    unknown = summary.gate_rules(make_report(gate=gate))[0]
    assert (unknown.change, unknown.held) == ("", None)


def test_the_table_compares_with_the_teacher():
    rows = {
        (row.label, row.split): row.cells
        for row in summary.cost_rows(make_report()) + summary.measure_rows(make_report())
    }

    assert [plain(cell.value) for cell in rows["MACs", ""]] == ["999 M", "246 M", "246 M"]
    assert [plain(cell.change) for cell in rows["MACs", ""]] == ["", "24.6 %", "24.6 %"]
    assert rows["MACs by thop", ""][0].value == figures.UNKNOWN
    assert [plain(cell.change) for cell in rows["PSNR (dB)", "synthetic"]] == ["", "-0.41", "-0.52"]
    assert rows["Dark channel density", "real photographs"][2].value == "0.355"
    assert rows["Latency", ""][0].detail == "144 to 160"


def test_a_task_can_explain_its_own_measures():
    report = make_report(explanations={"dark_channel_density": "As our own index sees it."})
    assert "As our own index sees it." in to_html(report)


def test_the_page_is_whole_and_loads_nothing():
    page = to_html(make_report())
    tags = parsed(page)

    outside = [
        ref for ref in tags.references if not ref.startswith(("data:image/jpeg;base64,", "#"))
    ]
    assert outside == []
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert page.count("<script") == 1
    assert "<script" not in to_html(Report(name="x", title="x", measurements={}))
    assert len(tags.ids) == len(set(tags.ids))
    assert {ref[1:] for ref in tags.references if ref.startswith("#")} <= set(tags.ids)
    for text in (
        "prefers-color-scheme: dark",
        "@media print",
        "keep_macs: 0.25",
        "27.1 dB",
        "encoder.3.1.value",
    ):
        assert text in page


def test_sections_come_in_order_and_only_when_there_is_something_to_say():
    order = "comparison frontier pictures adaptation widths training time recipe provenance notes"
    assert re.findall(r'<section id="(\w+)"', to_html(make_report())) == order.split()
    bare = to_html(Report(name="x", title="x", measurements={}))
    assert re.findall(r'<section id="(\w+)"', bare) == ["recipe"]


def test_text_from_outside_is_no_markup():
    bad = "<script>alert(1)</script>|"
    report = make_report(
        title=bad,
        notes=[bad],
        recipe_text=bad,
        pictures=[picture(bad, ("hazy", bad))],
        histories={bad: History((1,), {bad: (1.0,)})},
        stage_seconds={bad: 1.0},
        provenance={bad: bad},
    )
    assert "<script>" not in to_html(report)
    assert "<script>" not in to_markdown(report).split("```")[0]


def test_markdown_has_the_same_figures_in_well_formed_tables():
    text = to_markdown(make_report())

    assert "24.6" in text.splitlines()[2]
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 6
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_picture_survives_within_jpeg_error():
    image = picture("x", ("a",), size=(48, 64)).images["a"]

    uri = data_uri(image)

    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    decoded = imread(io.BytesIO(base64.b64decode(data)), format="jpg")
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded.astype(int) - image.numpy().astype(int)).max() <= 6


@pytest.mark.parametrize("image", [torch.zeros(4, 4, 3), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_a_picture_of_another_kind_is_an_error(image):
    with pytest.raises(
        DataError, match=re.escape(f"uint8 of shape (height, width, 3), got {image.dtype}")
    ):
        data_uri(image)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(allow_infinity=True)), min_size=1, max_size=20
    )
)
def test_every_finite_point_lies_in_the_picture(points):
    points = sorted(points)
    history = History(tuple(x for x, _ in points), {"a": tuple(y for _, y in points)})
    for chart in curves.charts(history):
        for line in chart.lines:
            for point in line.points.split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= curves.WIDTH
                assert 0 <= y <= curves.HEIGHT
        assert len(chart.x_ticks) <= 12
        assert len(chart.y_ticks) <= 16


def test_a_long_falling_loss_is_drawn_logarithmically_and_thinned():
    values = tuple(10.0 ** (-3 * i / 999) for i in range(1000))
    (chart,) = curves.charts(History(tuple(range(1000)), {"a": values}))
    assert chart.logarithmic
    assert [tick.text for tick in chart.y_ticks] == ["0.001", "0.01", "0.1", "1"]
    assert len(chart.lines[0].points.split()) <= 300
    assert chart.lines[0].last == "0.00100"


def test_no_curve_without_a_finite_value():
    assert curves.charts(History((1, 2), {"a": (math.nan, math.inf)})) == []


def test_written_and_read_again(tmp_path):
    page = write_report(make_report(), tmp_path / "run")

    assert page.name == "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    assert read_report(page.parent) == json.loads(to_json(make_report()))
    assert write_report(make_report(title="again"), page.parent) == page
    assert read_report(page.parent)["title"] == "again"


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path):
    write_report(make_report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(DataError, match="uint8"):
        write_report(make_report(pictures=[Picture("x", {"a": torch.zeros(2, 2, 3)})]), tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "is this a finished run?"),
        ("{", "is not JSON"),
        ("[]", "has schema_version None"),
        ('{"schema_version": 9}', "has schema_version 9, and this version reads 2"),
    ],
)
def test_a_report_that_cannot_be_read_is_one_clear_line(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(complaint)):
        read_report(tmp_path)


def plain_row(**columns):
    images = {
        name: torch.full((96, 128, 3), value, dtype=torch.uint8) for name, value in columns.items()
    }
    return Picture("x", images)


def test_a_closer_look_finds_where_the_last_network_errs():
    row = plain_row(hazy=200, teacher=100, student=100, truth=100)
    row.images["student"][60:80, 100:120] = 220
    row.images["teacher"][:8] = 0

    look = closer_look(row, ["teacher", "student"])

    assert look.reference == "truth"
    assert set(look.crops) == set(row.images)
    assert look.crops["student"].shape == (24, 24, 3)
    assert (look.crops["student"] == 220).float().mean() > 0.6
    assert look.mean_errors["student"] == pytest.approx(400 * 120 / 255 / (96 * 128))
    assert look.errors["student"].max() == 255
    assert look.errors["student"][:50].max() == 0
    assert look.errors["teacher"][0, 0].tolist() == [255, 255, 255]


def test_error_maps_grow_with_the_error():
    ramp = torch.arange(128).expand(96, 3, 128).permute(0, 2, 1)
    row = Picture("x", {"teacher": torch.zeros(96, 128, 3).byte(), "student": ramp.byte()})

    brightness = closer_look(row, ["teacher", "student"]).errors["student"].int().sum(dim=2)[0]

    assert (brightness.diff() >= 0).all()
    assert brightness[0] == 0
    assert brightness[64:].min() == 3 * 255


@pytest.mark.parametrize(
    "row",
    [
        plain_row(hazy=1, truth=2),
        plain_row(teacher=1),
        Picture("x", {n: torch.zeros(8, 8, 3).byte() for n in ("teacher", "student")}),
        Picture("x", {n: torch.zeros(8 * len(n), 64, 3).byte() for n in ("teacher", "net")}),
    ],
    ids=["no network", "nothing to compare with", "too small", "two sizes"],
)
def test_what_cannot_be_compared_has_no_closer_look(row):
    assert closer_look(row, ["teacher", "student", "net"]) is None
    to_html(Report(name="x", title="x", measurements={"teacher": {}}, pictures=[row]))


def in_browser(page, tmp_path):
    """Return the document that Chromium makes of a page."""
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout


def make_layer_times():
    kinds = ["Conv2d", "depthwise Conv2d", "BatchNorm2d"]
    layers = tuple(
        LayerTime(
            path=f"encoder.stages.{number}.very_long_name_of_a_layer.value",
            kind=kinds[number % 3],
            params=100,
            ms=1234.5 / (1 + number),
            least_ms=1234.5 / (1 + number),
        )
        for number in range(20)
    )
    total_ms = sum(layer.ms for layer in layers) + 1
    times = LayerTimes(
        total_ms=total_ms, elsewhere_ms=1.0, elsewhere_least_ms=1.0, layers=layers, rounds=3
    )
    macs = {layer.path: 10**9 for layer in layers[::3]}
    return describe_layers({"teacher": times, "student": times}, dict.fromkeys(ROLES, macs))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser Chromium")
def test_nothing_is_wider_than_a_phone(tmp_path):
    slow = {"adapted": measured(246_000_000, 270_000, 120.0, 26.6, 0.36)}
    measurements = {**make_report().measurements, **slow}
    page = to_html(make_report(layer_times=make_layer_times(), measurements=measurements))
    assert 'class="blame"' in page
    frame = f'<iframe width="390" height="800" srcdoc="{html.escape(page)}"></iframe>'
    script = (
        "<script>const frame = document.querySelector('iframe'); frame.onload = () => {"
        "document.title = 'wide ' + frame.contentDocument.documentElement.scrollWidth}</script>"
    )

    shown = in_browser(f"<!doctype html><title></title>{frame}{script}", tmp_path)

    (width,) = re.findall(r"<title>wide (\d+)</title>", shown.split("<iframe")[0])
    assert int(width) <= 390


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser Chromium")
def test_a_browser_shows_the_slider(tmp_path):
    row = plain_row(hazy=200, teacher=100, student=90, truth=100)

    shown = in_browser(to_html(make_report(pictures=[row])), tmp_path)

    (figure,) = re.findall(r'<figure class="compare".*?</figure>', shown, flags=re.DOTALL)
    assert "hidden" not in figure.split(">")[0]
    assert "--at: 50%" in figure
    left, right = re.findall(r'<img[^>]*src="(data:image/jpeg[^"]*)"', figure)
    assert left != right
