"""Measuring: average precision with its confidence interval, latency, parameters and operations."""
