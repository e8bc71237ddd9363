"""Progress stays harmless and quiet where it should."""

from __future__ import annotations

import math
import os
import signal

import pytest

from trimtab.machine import progress as module
from trimtab.machine.interrupt import stop_on_interrupt
from trimtab.machine.progress import clock, harmless, progress, say


def test_control_characters_never_reach_the_terminal() -> None:
    assert harmless("a\x1b[31mb\u202ec\r\n") == "a\ufffd[31mb\ufffdc\ufffd\ufffd"


@pytest.mark.parametrize(("seconds", "text"), [(7, "7s"), (63, "1m03s"), (7500, "2h05m")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_off_terminal_output_is_one_plain_line_per_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.OUTPUT, "quiet", False)
    monkeypatch.setattr(module.OUTPUT, "shown", -math.inf)
    with progress(100, "train") as bar:
        bar.started = 0.0
        for second in range(31):
            now[0] = float(second)
            bar.update(second, "loss 0.3 · 1,234 img/s")
            with progress(1, "evaluate") as inner:
                inner.started = 0.0
                inner.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "left" in lines[0]
    assert "img/s" in lines[0]
    assert "\x1b" not in "".join(lines)


def test_time_left_goes_by_what_was_done_since_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    with progress(100, "train") as bar:
        assert "10s left" in bar.line(50, "", 10)
        bar.begin(80)
        assert "? left" in bar.line(80, "", 10)
        assert "3m10s left" in bar.line(81, "", 10)


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr().err == ""


def test_first_interrupt_is_a_request_and_the_second_raises() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt() as stop:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
