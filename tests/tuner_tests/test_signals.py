from __future__ import annotations

import signal

import pytest

from tuner import signals, stopping
from tuner.signals import sigterm_interrupts
from tuner.stopping import StudyStopper, signals_stop


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
