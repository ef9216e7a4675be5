# CPU or GPU: torch's wheels bring the CUDA libraries, the host needs the NVIDIA driver and container toolkit.
# The `gpu` extra compiles flash-attn, which needs a base with the CUDA toolkit:
#   docker build --build-arg BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04 --build-arg EXTRAS=dev,gpu -t cosmos-predict .
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG EXTRAS=dev

RUN if ! python3 -m ensurepip --version >/dev/null 2>&1; then \
        apt-get update && \
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-dev python3-venv git && \
        rm -rf /var/lib/apt/lists/*; \
    fi
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} PYTHONUNBUFFERED=1

# The dependencies first: this layer is built again only when they change.
WORKDIR /workspace/cosmos-predict
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY cosmos_predict/__init__.py cosmos_predict/__init__.py
RUN touch train.py && \
    pip install --no-cache-dir "setuptools>=77" wheel ninja packaging torch torchvision -c constraints.txt && \
    pip install --no-cache-dir --no-build-isolation -e ".[${EXTRAS}]" -c constraints.txt

COPY . .
