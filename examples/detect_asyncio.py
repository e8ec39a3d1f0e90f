"""Counts the objects in many pictures at a time, with asyncio.

    damoserve serve &
    python examples/detect_asyncio.py docs/images/*.jpg

A picture that fails is told of, and the others go on.
"""

import asyncio
from collections import Counter
from pathlib import Path

import typer

from damoserve_client import DEFAULT_ADDRESS, AsyncClient, DamoserveError

AT_A_TIME = 8
"""Enough to keep every worker busy, and far below what the server lets wait (`DAMOSERVE_MAX_QUEUE`)."""


async def count(images: list[Path], address: str) -> Counter[str]:
    total: Counter[str] = Counter()
    limit = asyncio.Semaphore(AT_A_TIME)

    async def one(client: AsyncClient, image: Path) -> None:
        async with limit:
            try:
                result = await client.detect(image, tier="accurate")
            except DamoserveError as error:
                typer.echo(f"{image}: {error}", err=True)
                return
        typer.echo(f"{image}: {result.count_by_label()} by {result.profile}")
        total.update(result.count_by_label())

    async with AsyncClient(address) as client, asyncio.TaskGroup() as tasks:
        for image in images:
            tasks.create_task(one(client, image))
    return total


def main(images: list[Path], address: str = DEFAULT_ADDRESS) -> None:
    typer.echo(f"in all: {dict(asyncio.run(count(images, address)))}")


if __name__ == "__main__":
    typer.run(main)
