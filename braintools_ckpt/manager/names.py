"""How steps are written in the names of files."""

from __future__ import annotations

import re
import string

from ..storage.external import EXTERNAL_NAME


class StepNames:
    """A format with one field, ``{step}``, both ways.

    Parameters
    ----------
    pattern : str
        Such as ``'{step:010}.ckpt'``.

    Examples
    --------
    >>> names = StepNames("step_{step:06}.ckpt")
    >>> names.of(42), names.step("step_000042.ckpt"), names.step("notes.txt")
    ('step_000042.ckpt', 42, None)
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        try:
            parts = list(string.Formatter().parse(pattern))
            names = {self.of(step) for step in (0, 7, 123456)}
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(self._complaint(f"{type(error).__name__}: {error}")) from None
        fields = [field for _, field, _, _ in parts if field is not None]
        if fields != ["step"] or len(names) < 3:
            raise ValueError(self._complaint("it must have the field step once"))
        if any("/" in name or "\\" in name or name.startswith(".") for name in names):
            raise ValueError(self._complaint("it must be the name of a file, and not begin with a dot"))
        if any(EXTERNAL_NAME.fullmatch(name) for name in names):
            raise ValueError(self._complaint("files beside checkpoints are called so, which have a part of their data"))
        before, after = (re.escape(text) for text in self._around(parts))
        self._regex = re.compile(f"{before}([0-9]+){after}")
        if any(self.step(self.of(step)) != step for step in (0, 7, 123456)):
            raise ValueError(self._complaint("the step must be written with decimal digits alone"))

    def _around(self, parts: list[tuple[str, str | None, str | None, str | None]]) -> tuple[str, str]:
        index = next(i for i, (_, field, _, _) in enumerate(parts) if field is not None)
        return "".join(text for text, *_ in parts[: index + 1]), "".join(text for text, *_ in parts[index + 1 :])

    def _complaint(self, reason: str) -> str:
        return (
            f"name {self.pattern!r} is no format for checkpoints' names ({reason}). Use one like '{{step:010}}.ckpt'."
        )

    def of(self, step: int) -> str:
        """Give the name of a step."""
        return self.pattern.format(step=step)

    def step(self, name: str) -> int | None:
        """Give the step of a name, or None if it is not of this format."""
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        step = int(found[1])
        return step if self.of(step) == name else None  # another spelling would be a second file of one step
