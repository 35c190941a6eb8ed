# The suite with all that it needs: docker build -t flowcache-bench . (--build-arg DEVICE=cuda for NVIDIA GPUs), then
#   docker run --rm -v "$PWD/outputs:/flowcache/outputs" flowcache-bench                             # make run
#   docker run --rm --gpus all -v "$PWD/outputs:/flowcache/outputs" flowcache-bench make run ARGS="device=cuda"
FROM python:3.11-slim

# The compiler is torch.compile's, git tells records the revision.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /flowcache
ARG DEVICE=cpu
COPY Makefile requirements.txt ./
# PyPI's torch brings CUDA along; a build for the CPU has a version of its own, which pip prefers where it sees both.
RUN case "$DEVICE" in \
        cpu) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; \
        cuda) ;; \
        *) echo "DEVICE=$DEVICE must be cpu or cuda" >&2; exit 1 ;; \
    esac \
    && PIP_NO_CACHE_DIR=1 make setup

COPY . .
CMD ["make", "run"]
