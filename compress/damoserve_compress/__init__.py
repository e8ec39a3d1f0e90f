"""Offline: trains, prunes, quantises, validates and writes profiles."""
