# syntax=docker/dockerfile:1

# docker build --target server .      serves on the CPU; also what a build without --target makes
# docker build --target gpu .         serves on an NVIDIA GPU
# docker build --target compress .    trains, compresses, measures
#
# Each image has the layout of the source tree under /app, installed editable: so the packages find
# profiles/repository and profiles/recipes beside them, as they do in a checkout.

ARG PYTHON=python:3.11-slim-bookworm
# onnxruntime-gpu of constraints.txt is built for CUDA 13, cuDNN 9 and TensorRT 10, which the extra gpu brings.
ARG CUDA=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

# All that decides about the layers with dependencies.
FROM scratch AS requirements
COPY pyproject.toml constraints.txt LICENSE /

FROM scratch AS serving-source
COPY proto/damoserve /proto/damoserve
COPY clients/python/damoserve_client /clients/python/damoserve_client
COPY profiles/recipes /profiles/recipes
COPY profiles/repository /profiles/repository
COPY profiles/damoserve_profiles /profiles/damoserve_profiles
COPY server/damoserve_server /server/damoserve_server


FROM ${PYTHON} AS python
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin damoserve \
    && python -m venv /opt/venv
# ONNX Runtime 1.32 collects telemetry unless told not to.
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /app
COPY --from=requirements / ./
# The metadata names it; a change of its text is to leave the layers below as they are.
RUN touch README.md


FROM python AS compress
# PyPI's torch brings CUDA. To take its CPU build, far smaller, name an index that has it:
# --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt --editable '.[compress]'
COPY proto/damoserve proto/damoserve
COPY profiles profiles
COPY compress/damoserve_compress compress/damoserve_compress
# /data holds the data set. What is made goes to /work: `build` needs `--repository /work/repository`.
ENV DAMOSERVE_DATA=/data
RUN install --directory --owner=damoserve /work
WORKDIR /work
USER 10001
ENTRYPOINT ["damoserve-compress"]
CMD ["--help"]


# Checked by reading only: no machine with an NVIDIA GPU and a container engine was at hand.
# tensorrt's package fetches its libraries from NVIDIA's own index while it is installed.
FROM ${CUDA} AS gpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin damoserve \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /app
COPY --from=requirements / ./
RUN touch README.md
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt --editable '.[gpu,tracing]'
COPY --from=serving-source / ./
# What TensorRT builds; a volume there keeps it from one container to the next.
RUN install --directory --owner=damoserve --mode=700 /var/cache/damoserve
# A worker holds an engine of every profile: one for each core, the default, would fill the GPU's memory with copies.
ENV DAMOSERVE_HOST=0.0.0.0 \
    DAMOSERVE_METRICS_HOST=0.0.0.0 \
    DAMOSERVE_PROVIDERS='["CUDAExecutionProvider", "CPUExecutionProvider"]' \
    DAMOSERVE_ENGINE_CACHE=/var/cache/damoserve \
    DAMOSERVE_WORKERS=1
EXPOSE 50051 9464
USER 10001
STOPSIGNAL SIGTERM
# The first start builds engines, for minutes.
HEALTHCHECK --interval=15s --timeout=5s --start-period=900s CMD ["python", "-m", "damoserve_server.rpc.probe"]
ENTRYPOINT ["damoserve"]
CMD ["serve"]


FROM python AS server
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt --editable '.[server,tracing]'
COPY --from=serving-source / ./
ENV DAMOSERVE_HOST=0.0.0.0 \
    DAMOSERVE_METRICS_HOST=0.0.0.0
EXPOSE 50051 9464
USER 10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-m", "damoserve_server.rpc.probe"]
ENTRYPOINT ["damoserve"]
CMD ["serve"]
