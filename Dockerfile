# syntax=docker/dockerfile:1

# docker build --target server .      serves on the CPU; also what a build without --target makes
# docker build --target gpu .         serves on an NVIDIA GPU
# docker build --target compress .    trains, compresses, measures
#
# Each image has the layout of the source tree under /app, installed editable: so the packages find
# profiles/repository and profiles/recipes beside them, as they do in a checkout. A stage of its own installs into
# /opt/venv, from the metadata alone: no change of a source installs anything anew, and pip stays out of the images.

ARG PYTHON=python:3.11-slim-bookworm
# onnxruntime-gpu of constraints.txt is built for CUDA 13, cuDNN 9 and TensorRT 10, which the extra gpu brings.
ARG CUDA=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04


FROM ${PYTHON} AS base
RUN rm -rf /var/cache/apt/* /var/lib/apt/lists/* /root/.cache \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin damoserve


# The base in one layer: what was removed from it is gone, and does not stay in a layer below.
FROM scratch AS python
COPY --from=base / /
# ONNX Runtime 1.32 collects telemetry unless told not to.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin LANG=C.UTF-8 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /app


# All that decides about the dependencies. What the metadata names besides is empty here: an editable install only
# wants it to exist, and notes the folders that the sources will be copied to.
FROM python AS metadata
COPY pyproject.toml constraints.txt LICENSE ./
RUN echo damoserve > README.md \
    && python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["tool"]["hatch"]["build"]["targets"]["wheel"].get("force-include", ()), sep="\n")' \
    | xargs --no-run-if-empty --delimiter='\n' mkdir --parents


FROM scratch AS serving-source
COPY proto/damoserve /proto/damoserve
COPY clients/python/damoserve_client /clients/python/damoserve_client
COPY profiles/LICENSE profiles/NOTICE /profiles/
COPY profiles/recipes /profiles/recipes
COPY profiles/repository /profiles/repository
COPY profiles/damoserve_profiles /profiles/damoserve_profiles
COPY server/damoserve_server /server/damoserve_server


FROM python AS compress-dependencies
COPY --from=metadata /app ./
# PyPI's torch brings CUDA. To take its CPU build, far smaller, name an index that has it:
# --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --constraint constraints.txt --editable '.[compress]'


FROM python AS compress
COPY --from=compress-dependencies /opt/venv /opt/venv
COPY proto/damoserve proto/damoserve
COPY profiles profiles
COPY compress/damoserve_compress compress/damoserve_compress
RUN python -m compileall -q proto profiles compress
# /data holds the data set. What is made goes to /work: `build` needs `--repository /work/repository`.
ENV DAMOSERVE_DATA=/data
RUN install --directory --owner=damoserve /work
WORKDIR /work
USER 10001
ENTRYPOINT ["damoserve-compress"]
CMD ["--help"]


# Checked without a GPU, on a bare Ubuntu 24.04 (--build-arg CUDA=ubuntu:24.04) and with TensorRT taken out of the extra,
# for its libraries come from NVIDIA's own index and that was out of reach: it builds; with DAMOSERVE_PROVIDERS set to
# the processor's it serves every profile, read-only and without capabilities, and SIGTERM ends it well; with the
# image's own providers it says that CUDA's driver is missing. Never run: NVIDIA's base, TensorRT's package, a GPU.
FROM ${CUDA} AS cuda
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/cache/apt/* /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin damoserve
WORKDIR /app


# tensorrt's package fetches its libraries from NVIDIA's own index while it is installed.
FROM cuda AS gpu-dependencies
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip
COPY --from=metadata /app ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --constraint constraints.txt --editable '.[gpu,tracing]'


FROM cuda AS gpu
COPY --from=gpu-dependencies /opt/venv /opt/venv
COPY --from=serving-source / ./
# Before the first start: the image's user may not write there. TensorRT's engines have a folder, which a volume keeps.
RUN python -m compileall -q . \
    && install --directory --owner=damoserve --mode=700 /var/cache/damoserve
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


FROM python AS server-dependencies
COPY --from=metadata /app ./
# 52 MB that the server does not load: ONNX Runtime a second time, for programs in C, and numpy's tests.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --constraint constraints.txt --editable '.[server,tracing]' \
    && rm -rf /opt/venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.* \
    && find /opt/venv -path '*/numpy/*' -name tests -prune -exec rm -r {} +


FROM python AS server
COPY --from=server-dependencies /opt/venv /opt/venv
COPY --from=serving-source / ./
RUN python -m compileall -q .
ENV DAMOSERVE_HOST=0.0.0.0 \
    DAMOSERVE_METRICS_HOST=0.0.0.0
EXPOSE 50051 9464
USER 10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-m", "damoserve_server.rpc.probe"]
ENTRYPOINT ["damoserve"]
CMD ["serve"]
