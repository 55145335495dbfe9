# The image of the serving engine with warmer in it: builds kernels with the very vLLM that serves.
#
#   docker build --build-arg BASE_IMAGE=vllm/vllm-openai:v0.32.0 -t warmer .
#
# The server's container runs BASE_IMAGE itself: it needs no warmer.
ARG BASE_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${BASE_IMAGE} AS build
# For builds without network: --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
USER 0
COPY pyproject.toml README.md LICENSE /src/
COPY warmer /src/warmer
COPY entrypoints /src/entrypoints
COPY deploy/docker/install.sh deploy/docker/requirements.txt /src/
RUN /bin/sh /src/install.sh /src /out

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="warmer" \
      org.opencontainers.image.description="Fills the caches that make vLLM start slowly, once per fleet" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/ /
# Any user will do, with group 0 or with an fsGroup; nothing is written outside /warm, the volume and /tmp.
USER 1000:0
ENTRYPOINT ["/opt/warmer/entrypoints/init"]
CMD []
