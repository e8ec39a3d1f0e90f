#!/bin/sh
# Generates the committed stubs; run by `make proto`, and by CI to see that they have not drifted.
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python}
# `google/rpc/*.proto` come with googleapis-common-protos.
COMMON=$("$PYTHON" -c 'import google.rpc.status_pb2 as module, pathlib; print(pathlib.Path(module.__file__).parents[2])')
"$PYTHON" -m grpc_tools.protoc -I. -I"$COMMON" --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
    damoserve/v1/detection.proto damoserve/v1/admin.proto
# Messages only: the server registers its methods under the protocol's own service name.
"$PYTHON" -m grpc_tools.protoc -I. --python_out=. --mypy_out=. \
    damoserve/kserve/v2/inference.proto
