"""What a person sees while a command works: lines without control characters, or one bar."""

import io
import re
import sys

import pytest

from coa_compress.cli.progress import BarScreen, LineScreen, duration_text, end_line, screen_for
from coa_compress.errors import BudgetError


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_plain_lines_come_every_tenth_with_the_time_left():
    stream, clock = io.StringIO(), Clock()
    screen = LineScreen(stream, clock)
    screen.on_stage_start("distill", "")
    for step in range(101):
        screen.on_progress(step, 100, {"loss": 1 / (1 + step)})
        clock.now += 0.5
    screen.on_stage_end("distill", 50.0, "27.1 dB")

    lines = stream.getvalue().splitlines()
    assert lines[0] == "distill ..."
    assert lines[1] == "  distill 10% (10/100), 5.0 s, 45 s left, loss 0.09091"
    assert lines[10] == "  distill 100% (100/100), 50 s, loss 0.009901"
    assert lines[11:] == ["ok distill 50 s  27.1 dB"]


def test_plain_lines_come_every_15_seconds_of_a_slow_stage():
    stream, clock = io.StringIO(), Clock()
    screen = LineScreen(stream, clock)
    screen.on_stage_start("distill", "slow")
    for step in range(40):
        screen.on_progress(step, 10_000, {})
        clock.now += 1.0

    assert [line.split(",")[0] for line in stream.getvalue().splitlines()[1:]] == [
        "  distill 0% (15/10000)",
        "  distill 0% (30/10000)",
    ]


def test_a_resumed_stage_is_timed_by_its_own_steps():
    stream, clock = io.StringIO(), Clock()
    screen = LineScreen(stream, clock)
    screen.on_stage_start("distill", "")
    screen.on_progress(500, 1000, {})
    clock.now += 100.0
    screen.on_progress(600, 1000, {})

    assert "distill 60% (600/1000), 100 s, 400 s left".replace("400 s", "6 min 40 s") in (
        stream.getvalue()
    )


def test_progress_that_starts_again_or_has_no_total_is_no_problem():
    stream, clock = io.StringIO(), Clock()
    screen = LineScreen(stream, clock)
    screen.on_progress(0, 0, {})
    for total in (100, 10):
        for step in range(total + 1):
            clock.now += 1.0
            screen.on_progress(step, total, {})

    assert stream.getvalue().count("\n") >= 20
    assert "(10/10)" in stream.getvalue()


def test_plain_lines_never_hold_a_control_character():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    screen = screen_for(stream)
    with screen:
        screen.on_stage_start("a\x1b[2Jb", "é\r\nx")
        screen.on_progress(1, 1, {"\x07": float("nan")})
        screen.on_stage_end("a", 1.0, "✓\t")
        screen.say("warning: \x1b[31mred")

    assert isinstance(screen, LineScreen)
    assert re.fullmatch(rb"[ -~\n]+", stream.buffer.getvalue())


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end():
    stream, clock = Terminal(), Clock()
    screen = screen_for(stream)
    assert isinstance(screen, BarScreen)

    screen = BarScreen(stream, clock)
    with screen:
        screen.on_progress(1, 2, {})
        screen.on_stage_start("distill", "[bold]400 steps")
        screen.on_progress(0, 400, {"loss": 0.5})
        clock.now += 3.0
        screen.on_progress(100, 400, {"loss": 0.25})
        screen._bars.refresh()
        screen.say("warning: [x]")
        screen.on_stage_end("distill", 83.0, "27.1 dB")

    text = stream.getvalue()
    for part in ("[bold]400 steps", "100/400", "9.0 s left", "loss 0.25", "warning: [x]"):
        assert part in text
    assert "✓ distill 83 s  27.1 dB" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is back


def test_the_bar_lets_go_of_the_terminal_after_an_error():
    stream, before = Terminal(), (sys.stdout, sys.stderr)

    def fail():
        with BarScreen(stream) as screen:
            screen.on_stage_start("score", "")
            message = "no budget"
            raise BudgetError(message)

    with pytest.raises(BudgetError, match="no budget"):
        fail()

    assert (sys.stdout, sys.stderr) == before
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h")


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "✓ a 2.0 s  b"), ("UTF8", "✓ a 2.0 s  b"), ("cp1252", "ok a 2.0 s  b")],
)
def test_the_mark_fits_the_encoding(encoding, expected):
    assert end_line("a", 2.0, "b", encoding=encoding) == expected


def test_durations_are_said_by_people():
    assert [duration_text(s) for s in (0, 9.94, 9.96, 119.4, 119.6, 7199.6)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "119 s",
        "2 min 0 s",
        "2 h 0 min",
    ]
