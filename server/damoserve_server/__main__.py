"""Starts the server by `python -m damoserve_server`, without the client's command."""

import typer

from damoserve_profiles.extras import extra_needed

with extra_needed("python -m damoserve_server", "server"):
    from damoserve_server.cli import serve

if __name__ == "__main__":
    typer.run(serve)
