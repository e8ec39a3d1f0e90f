"""What libraries read from the environment while they are imported: set before any of them is."""

import os

# Usage statistics of ONNX Runtime are nobody's business unless the user says so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
