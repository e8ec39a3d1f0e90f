"""How long a test waits for what has to come; no test waits for time to pass."""

TIMEOUT = 20.0
"""In seconds, for a server in this process."""
PROCESS_TIMEOUT = 60.0
"""In seconds, for a process of its own, which has to start, on a machine that may be busy."""
