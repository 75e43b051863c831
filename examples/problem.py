"""What comes from outside the program: things for the user to mend, and requests to stop."""

from __future__ import annotations

import signal
from typing import Any


class Problem(Exception):
    """Something for the user to mend: its text is the whole message, no traceback is shown."""


class Stop:
    """Ctrl-C or SIGTERM (torchrun's, a scheduler's) ends the training after the step it is in."""

    def __init__(self) -> None:
        self.requested = False
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self._request) for number in numbers}

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True
        self.forget()  # the next one does not wait for the step

    def forget(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
