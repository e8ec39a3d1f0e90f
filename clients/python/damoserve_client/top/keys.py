"""Single keys from a terminal, without Enter."""

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Wait = Callable[[float], str]
"""Waits so many seconds for a key; the key, or nothing."""
QUIT = "q"


@contextmanager
def keys() -> Iterator[Wait]:
    """Without a terminal at standard input, or where terminals are different (Windows), there never is a key."""
    try:
        import termios
        import tty
    except ImportError:
        yield _sleep
        return
    if not sys.stdin.isatty():
        yield _sleep
        return
    terminal = sys.stdin.fileno()
    usual = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield lambda seconds: _key(terminal, seconds)
    finally:
        with suppress(termios.error):  # it may have gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, usual)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _key(terminal: int, seconds: float) -> str:
    ready, _, _ = select.select([terminal], [], [], seconds)
    if not ready:
        return ""
    try:
        pressed = os.read(terminal, 1)
    except OSError:
        pressed = b""
    return pressed.decode(errors="replace") or QUIT  # nothing is there to be read: the terminal has gone
