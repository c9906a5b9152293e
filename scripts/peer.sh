#!/usr/bin/env bash
# Installs AdapterHub's Python library `adapters` into .graftwork/peer, as a reference for `make test-all`.
# The product never needs it. About 3 GB, once: `import torch` links all of CUDA's libraries even for CPU work.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.graftwork/peer
[ -e "$venv/ready" ] && exit 0
python3 -m venv "$venv"
install() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "$@"; }
install --no-deps torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 nvidia-cublas==13.1.0.3 \
  nvidia-cufft==12.5.0.14 nvidia-cufile==1.20.0.107 nvidia-curand==10.4.5.25 nvidia-cusparse==12.9.4.2 \
  nvidia-nvjitlink==13.5.37 nvidia-cudnn-cu13==9.19.0.56 nvidia-cusparselt-cu13==0.8.0 nvidia-nccl-cu13==2.28.9 \
  nvidia-nvshmem-cu13==3.4.5
install filelock typing-extensions sympy networkx jinja2 fsspec 'setuptools<82' numpy
install --no-deps adapters==1.3.0 accelerate==1.15.0 peft==0.18.1
install 'transformers~=4.57.6' safetensors 'datasets<4.0.0' pyarrow
"$venv/bin/python" -c 'import adapters, torch; print("peer: adapters", adapters.__version__, "on torch", torch.__version__)'
touch "$venv/ready"
