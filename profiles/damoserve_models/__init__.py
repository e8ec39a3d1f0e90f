"""The models that come with damoserve: a repository of profiles, and nothing else.

A distribution of its own, so that neither a client nor a server with models of its own has to carry them.
"""

from pathlib import Path

REPOSITORY = Path(__file__).with_name("repository")
"""Folder of models. Only an installed wheel has it here; in the source tree it lies beside this package."""
