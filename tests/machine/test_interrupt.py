"""The first Ctrl-C or SIGTERM asks, what comes after depends on which it was."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from trimtab.errors import Interrupted, Preempted
from trimtab.machine.interrupt import stop_on_interrupt, stoppable, stopped


def send(*signals: int) -> None:
    for one in signals:
        os.kill(os.getpid(), one)


@pytest.mark.parametrize(("number", "preempted"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_the_first_signal_is_a_request_that_says_which_it_was(number: int, preempted: bool) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_interrupt() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        assert stop.preempted is preempted
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    error = stopped("all is in runs/a")
    assert isinstance(error, Preempted) is preempted
    assert error.exit_code == (75 if preempted else 130)
    assert "all is in runs/a" in error.message


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_request_leaves_at_once_and_sigterm_does_not(first: int) -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt() as stop:  # noqa: PT012
        send(first, signal.SIGTERM, signal.SIGTERM)
        assert stop.preempted is (first == signal.SIGTERM)
        send(signal.SIGINT)
    assert not isinstance(stopped("x"), Preempted)


def test_sigterm_where_no_loop_listens_ends_the_work_once() -> None:
    caught = []
    with stoppable():
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            caught.append(1)
        send(signal.SIGTERM)  # while what was reached is being saved
    assert caught == [1]
    assert isinstance(stopped("x"), Preempted)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_work_that_nobody_saves_ends_by_the_error_of_its_signal(
    number: int, error: type[BaseException]
) -> None:
    with pytest.raises(error), stoppable():
        send(number)


def test_an_earlier_sigterm_is_forgotten_when_new_work_begins() -> None:
    with stop_on_interrupt():
        send(signal.SIGTERM)
    with stoppable():
        pass
    assert type(stopped("x")) is Interrupted


def test_beside_the_main_thread_the_work_runs_as_it_is() -> None:
    seen = []

    def work() -> None:
        with stoppable(), stop_on_interrupt() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
