"""What goes wrong outside the program."""

from __future__ import annotations


class Problem(Exception):
    """Something for the user to mend: its text is the whole message, no traceback is shown."""
