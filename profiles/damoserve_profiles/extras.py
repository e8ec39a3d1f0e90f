"""Advice on what to install, in one line instead of a traceback, where the packages of an extra are missing.

Imports the standard library only: it has to load where nothing else does.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

OURS = "damoserve"
"""Prefix of the names of all our packages: if a module of these is missing, to install an extra would not help."""


@contextmanager
def extra_needed(command: str, extra: str) -> Iterator[None]:
    """Ends the process with the advice to install `extra` when a package is missing that `command` needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package.startswith(OURS):
            raise
        advice = f"Install it: pip install 'damoserve[{extra}]'"
        print(f"error: `{command}` needs {package}, which is not installed. {advice}", file=sys.stderr)
        raise SystemExit(1) from None
