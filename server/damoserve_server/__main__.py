"""`python -m damoserve_server`: the server without the client's command."""

import typer

from damoserve_server.cli import serve

if __name__ == "__main__":
    typer.run(serve)
