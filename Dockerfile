# quantfl on a CPU: `docker build -t quantfl .`, then `docker run --rm -v quantfl:/runs/outputs quantfl` runs the demo.
# pip's torch for Linux is built for CUDA; a smaller image has a CPU build, from the index that pytorch.org names for it:
#   docker build --build-arg TORCH_INDEX=https://INDEX -t quantfl .
FROM python:3.11.13-slim-bookworm

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /src
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint constraints.txt torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY fl fl
RUN pip install --constraint constraints.txt . \
  && useradd --create-home --uid 1000 quantfl \
  && install --directory --owner quantfl /runs /runs/outputs

USER 1000
WORKDIR /runs
CMD ["sh", "-c", "run=outputs/$(date +%F-%H%M%S); quantfl train experiment=demo hydra.run.dir=$run && quantfl compare $run"]
