"""The models that are loaded: from verified files to profiles that serve, each model exchanged in one step.

Knows nothing of requests, workers' threads or gRPC.

catalogue   models, versions and profiles, with their state, as immutable objects
loading     profiles from files: verified, checked on their golden image, warmed up and timed
lookup      models, versions and profiles in the repository, by the names that callers give
core_split  the choice of workers and threads, by measuring
"""
