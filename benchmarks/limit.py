"""The end of a run: how much time is left, for all of it and for one row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from .timing import Budget

_SHARE = 0.1  # of the whole limit: what one row may take at most


class Limit:
    """Begins when it is made. minutes: 0 for none."""

    def __init__(self, minutes: float = 0, clock: Callable[[], float] = time.monotonic):
        self.minutes = minutes
        self._seconds = 60 * minutes or math.inf
        self._clock = clock
        self._end = clock() + self._seconds

    def left(self) -> float:
        """Seconds until the end, negative after it; infinity without a limit."""
        return self._end - self._clock()

    def of_row(self, budget: Budget) -> Budget:
        """The budget of a row that begins now."""
        return replace(budget, longest=min(budget.longest, self.left(), _SHARE * self._seconds))

    @property
    def reason(self) -> str:
        """Why nothing begins any more."""
        return f"no time left of {self.minutes:g} minutes"
