"""What no test of saves in the background may leave behind."""

from __future__ import annotations

from braintools_ckpt import at_exit
from braintools_ckpt.storage import outcome, turns


def assert_none() -> None:
    """Fail if there are saves, or failures that nobody has seen: they would end the tests with an exit code of 120."""
    unseen = outcome.failures.present()
    outcome.failures.entries.clear()
    assert not unseen
    assert not turns.line.present()
    assert not at_exit.saves.present()
