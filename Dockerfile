# syntax=docker/dockerfile:1
# Two targets: `cpu`, and `cuda` for NVIDIA GPUs (the container runtime brings the
# driver, pip the CUDA 13 and cuDNN 9 libraries). Mount a model repository at
# /models, or bake a model in: --build-arg MODEL=sentence-transformers/all-MiniLM-L6-v2
ARG PYTHON_VERSION=3.11

# -- install: the environment, built once and copied ------------------------------
FROM python:${PYTHON_VERSION}-slim-bookworm AS install
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/shoal
WORKDIR /src
COPY constraints.txt ./
COPY protos protos
COPY client client
COPY server server

FROM install AS install-cpu
RUN /opt/shoal/bin/pip install -c constraints.txt ./protos "./client[cli]" "./server[cpu]"

FROM install AS install-cuda
RUN /opt/shoal/bin/pip install -c constraints.txt ./protos "./client[cli]" "./server[gpu]" \
        "onnxruntime-gpu[cuda,cudnn]"

# -- model: baked in when MODEL names one, else an empty folder to mount over ------
FROM install-cpu AS model
ARG MODEL=""
ARG MODEL_REVISION=""
RUN mkdir -p /models && if [ -n "$MODEL" ]; then \
        /opt/shoal/bin/shoal models pull "$MODEL" --model-dir /models --remove-export-env \
            ${MODEL_REVISION:+--revision "$MODEL_REVISION"}; \
    fi

# -- run: no compiler, no pip cache, no root ---------------------------------------
FROM python:${PYTHON_VERSION}-slim-bookworm AS run
RUN useradd --system --uid 10001 --create-home shoal
ENV PATH=/opt/shoal/bin:$PATH \
    SHOAL_MODEL_DIR=/models \
    SHOAL_GRPC_HOST=0.0.0.0 \
    SHOAL_HTTP_HOST=0.0.0.0
COPY --from=model --chown=shoal:shoal /models /models
VOLUME /models
EXPOSE 50051 8080
USER shoal
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["shoal", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["shoal"]
CMD ["serve"]

FROM run AS cuda
COPY --from=install-cuda /opt/shoal /opt/shoal

FROM run AS cpu
COPY --from=install-cpu /opt/shoal /opt/shoal
