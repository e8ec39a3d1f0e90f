"""The models that come with damoserve: a repository of profiles, and nothing else.

A distribution of its own, so that neither a client nor a server with models of its own has to carry them.
"""

from damoserve_models.location import REPOSITORY

__all__ = ["REPOSITORY"]
