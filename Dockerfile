# syntax=docker/dockerfile:1
# Images of Carina: worker (the default), worker-gpu, trainer.
#
#     docker build --target worker -t carina:0.1.0 .
#
# Wheels are built in one stage and installed in a slim one, which has no compiler and no pip
# cache. Research use, not a medical device.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04

# --- wheels ---------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS source
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schema schema
COPY worker worker
COPY trainer trainer
COPY migrations migrations

FROM source AS wheels
RUN pip wheel --no-cache-dir -c constraints.txt -w /wheels '.[postgresql,cluster,pacs,serve]'

FROM source AS wheels-trainer
RUN pip wheel --no-cache-dir -c constraints.txt -w /wheels '.[postgresql,cluster,train]'

# --- CPU: what works at night, without PyTorch --------------------------------------------
FROM ${PYTHON_IMAGE} AS runtime
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/carina/bin:$PATH \
    CARINA_HOME=/var/lib/carina
# A named volume takes owner and mode of this folder when it is first used.
RUN groupadd --gid 10001 carina \
    && useradd --uid 10001 --gid carina --home-dir /var/lib/carina --no-create-home --shell /usr/sbin/nologin carina \
    && install --directory --owner carina --group carina --mode 0700 \
        /var/lib/carina /var/lib/carina/bundles /var/lib/carina/engines /var/lib/carina/spool \
    && python -m venv /opt/carina
WORKDIR /var/lib/carina

FROM runtime AS trainer
RUN --mount=type=bind,from=wheels-trainer,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels 'carina-cxr[postgresql,cluster,train]'
USER carina
ENTRYPOINT ["carina"]
CMD ["rebuild", "--help"]

# --- GPU ------------------------------------------------------------------------------------
# Not executed: written without a machine that has Docker and a GPU.
FROM ${CUDA_IMAGE} AS cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/carina
ENV PATH=/opt/carina/bin:$PATH

FROM cuda AS wheels-gpu
WORKDIR /build
COPY --from=source /build ./
RUN pip wheel --no-cache-dir -c constraints.txt -w /wheels '.[postgresql,cluster,tensorrt]'

FROM cuda AS worker-gpu
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CARINA_HOME=/var/lib/carina
RUN groupadd --gid 10001 carina \
    && useradd --uid 10001 --gid carina --home-dir /var/lib/carina --no-create-home --shell /usr/sbin/nologin carina \
    && install --directory --owner carina --group carina --mode 0700 \
        /var/lib/carina /var/lib/carina/bundles /var/lib/carina/engines /var/lib/carina/spool
RUN --mount=type=bind,from=wheels-gpu,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels 'carina-cxr[postgresql,cluster,tensorrt]'
WORKDIR /var/lib/carina
USER carina
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s --retries=3 \
    CMD ["carina", "status", "--fail-if-waiting-longer", "900", "--lane", "icu"]
ENTRYPOINT ["carina", "--verbose"]
CMD ["worker", "--devices", "all"]

# --- the default target ---------------------------------------------------------------------
FROM runtime AS worker
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels 'carina-cxr[postgresql,cluster,pacs,serve]'
USER carina
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s --retries=3 \
    CMD ["carina", "status", "--fail-if-waiting-longer", "900", "--lane", "icu"]
ENTRYPOINT ["carina", "--verbose"]
CMD ["worker", "--devices", "cpu"]
