"""Offline: trains, prunes, quantises, validates and writes profiles."""

import os

# ONNX Runtime reads this when it is imported; usage statistics are nobody's business unless the user says so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
