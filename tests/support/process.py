"""A server in a process of its own, as an operator starts it."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from damoserve_profiles.repository import BUNDLED
from tests.support.timeouts import PROCESS_TIMEOUT

READY = re.compile(r"serving .* on (?P<address>\S+:\d+), metrics on (?P<metrics>\S+)")


@dataclass(frozen=True)
class RunningServer:
    process: subprocess.Popen[str]
    address: str
    metrics: str

    def stop(self) -> int:
        """Asks it to stop, as an orchestrator would; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PROCESS_TIMEOUT)


@contextmanager
def run_server(repository: Path = BUNDLED, port: int = 0) -> Iterator[RunningServer]:
    command = [sys.executable, "-m", "damoserve_server", "--port", str(port), "--metrics-port", "0"]
    with subprocess.Popen(
        [*command, "--repository", str(repository)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = READY.search(process.stdout.readline())
            assert ready, "the server did not start"
            yield RunningServer(process, ready["address"], ready["metrics"])
        finally:
            process.kill()


StartServer = Callable[..., AbstractContextManager[RunningServer]]
