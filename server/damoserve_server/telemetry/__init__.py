"""Traces and logs: one record of each call, told at its end to its trace and to the access log.

Knows nothing of what a request is: others hand in the fields. Metrics are a room of their own.

records        the record of a call or of a part of it, and the current one
spans          the interface of traces, which by itself records nothing
opentelemetry  the same over OpenTelemetry; only this needs its packages
logs           the formats of the log
settings       the settings of traces and log
"""
