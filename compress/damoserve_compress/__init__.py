"""Offline: trains, prunes, quantises, validates and writes profiles."""

from damoserve_compress import environment as environment
