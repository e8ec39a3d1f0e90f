"""The gRPC server: holds a model in several profiles and answers each request with the best one that is in time."""
