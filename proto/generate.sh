#!/bin/sh
# Generates the committed stubs; run by `make proto`, and by CI to see that they have not drifted.
set -eu
cd "$(dirname "$0")"
${PYTHON:-python} -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
    damoserve/v1/detection.proto damoserve/v1/admin.proto
