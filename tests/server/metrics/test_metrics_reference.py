"""docs/metrics.md, the code that it is about, and a server that runs."""

import asyncio
import re
from pathlib import Path

from damoserve_profiles.repository import BUNDLED
from damoserve_server.metrics.reference import page
from tests.support.pictures import Pictures
from tests.support.server import Samples, Serve

PAGE = (Path(__file__).parents[3] / "docs/metrics.md").read_text()


def test_page_is_what_the_code_writes() -> None:
    assert page() == PAGE, "write it anew: python -m damoserve_server.metrics.reference > docs/metrics.md"


def test_a_running_server_shows_what_the_page_lists(serve: Serve, pictures: Pictures) -> None:
    """With the bundled model, whose manifests have all that there is to show, once something was asked of it."""

    async def scenario() -> Samples:
        async with serve(repository=BUNDLED, fidelity={"share": 1}) as client:
            await client.detect(pictures.red)
            return await client.metrics()

    written = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", PAGE, re.MULTILINE)
    listed = {(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in written}
    assert asyncio.run(scenario()).families() == listed
    assert len(listed) == len(written) > 40
