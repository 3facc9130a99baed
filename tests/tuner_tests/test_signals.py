from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tuner import signals
from tuner.driver import stopping
from tuner.driver.stopping import StudyStopper, signals_stop
from tuner.signals import signals_held_back, sigterm_interrupts


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    """The handler that a command begins with; Ray, once started by another test, leaves its own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_interrupts_once_when_it_comes_twice() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with sigterm_interrupts():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_later_sigterm_interrupts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.0)
    with sigterm_interrupts():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_echo_of_a_signal_does_not_end_a_study_at_once(number: signal.Signals) -> None:
    """`timeout` signals its child and then the group that the child is in."""
    stopper = StudyStopper(None)
    with signals_stop(stopper):
        assert not stopper.stop_all()
        signal.raise_signal(number)
        signal.raise_signal(number)
    assert stopper.stop_all()
    assert stopper.reason == "interrupted by the user"


def test_a_second_signal_ends_a_study_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "ECHO_SECONDS", 0.0)
    with signals_stop(StudyStopper(None)):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_a_study_whose_cluster_is_gone_waits_for_nothing() -> None:
    stopper = StudyStopper(None)
    stopper.gave_up = True
    with signals_stop(stopper), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert not stopper.interrupted


def raised_meanwhile(*numbers: signal.Signals) -> list[signal.Signals]:
    """Raise signals while they are held back, and tell which got by before the block ended."""
    got_by = []
    with signals_held_back():
        for number in numbers:
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                got_by.append(number)
    return got_by


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_held_back_interrupts_after_the_block(number: signal.Signals) -> None:
    """Also where what runs meanwhile swallows every exception."""
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        raised_meanwhile(number, number)
    assert signal.getsignal(number) is before
    assert raised_meanwhile() == []


def test_a_later_signal_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.0)
    seen: list[str] = []

    def foreign_code() -> None:
        with signals_held_back():
            signal.raise_signal(signal.SIGTERM)
            seen.append("after the first")
            signal.raise_signal(signal.SIGTERM)
            seen.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        foreign_code()
    assert seen == ["after the first"]
