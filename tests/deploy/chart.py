#!/usr/bin/env python3
"""Renders the Helm chart and holds every object of it to the published schemas, strictly, and to what the house promises:
probes, limits, a pod without rights, secrets by reference alone. Prints what is wrong and exits 1, or counts what it saw.

    chart.py HELM CHART [--set NAME=VALUE]…
"""
import re
import subprocess
import sys
import tomllib

import jsonschema
import kubernetes_validate
import yaml
from cloudcoil.models.keda import v1alpha1

SCHEMAS = "1.37"
RUNNERS = ("Deployment", "StatefulSet")

# Text that is a secret: a token of Graftwork's, a private key, an address with a password in it.
SECRET = re.compile(r"graftwork-(?:join|submit|read|admin)-|PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@")
# Or one by its name, where it is given something else than a file, or by -env a variable's name.
NAMED_SECRET = re.compile(r"""(?i)\b[\w-]*(?:password|token|secret|key)s?["']?\s*[:=]\s*["']?(?![/"'\s])""")

TEXT = {"type": "string", "minLength": 1}


def table(required, **properties):
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def closed(schema):
    """The schema with no room for what it does not name."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            closed(part)
    elif isinstance(schema, list):
        for part in schema:
            closed(part)
    return schema


# KEDA's own schema, of the custom resource that it publishes.
SCALED_OBJECT = closed(v1alpha1.ScaledObject.model_json_schema())

# It takes any texts as a trigger's settings. These are the ones of KEDA's Prometheus scaler that are used here.
TRIGGER = table(
    "type metricType metadata", type={"const": "prometheus"}, metricType={"const": "AverageValue"},
    metadata=table("serverAddress query threshold ignoreNullValues", serverAddress={"type": "string", "pattern": "^https?://"},
                   query=TEXT, threshold={"type": "string", "pattern": "^[0-9]+$"}, ignoreNullValues={"const": "false"}))

# What prometheus-adapter takes as a rule of external metrics.
RULES = table("externalRules", externalRules={"type": "array", "minItems": 1, "items": table(
    "seriesQuery resources name metricsQuery", seriesQuery=TEXT, metricsQuery=TEXT, name=table("as", **{"as": TEXT}),
    resources=table("overrides", overrides=table("namespace", namespace=table("resource", resource={"const": "namespace"}))))})


def rendered(helm, chart, settings):
    command = [helm, "template", "check", chart, *settings]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode:
        sys.exit(f"helm does not render it: {output.stderr.strip()}")
    return [document for document in yaml.safe_load_all(output.stdout) if document]


def name(document):
    return f"{document['kind']} {document['metadata']['name']}"


def schema_problems(document):
    if document["kind"] == "ScaledObject":
        return custom_problems(document)
    if "config.yaml" in document.get("data", {}):
        problems = against(RULES, yaml.safe_load(document["data"]["config.yaml"]), name(document))
        return [*problems, *kubernetes_problems(document)]
    return kubernetes_problems(document)


def against(schema, value, where):
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{where}: {error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def custom_problems(document):
    yield from against(SCALED_OBJECT, document, name(document))
    for trigger in document["spec"].get("triggers", []):
        yield from against(TRIGGER, trigger, name(document))
    # KEDA hands the pace on to an autoscaler of its own.
    pace = document["spec"].get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}
    spec = {"scaleTargetRef": target, "maxReplicas": 1, "behavior": pace}
    yield from kubernetes_problems(
        {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": document["metadata"], "spec": spec})


def kubernetes_problems(document):
    try:
        kubernetes_validate.validate(document, SCHEMAS, strict=True)
    except Exception as error:  # each of its errors is one of the object
        yield f"{name(document)}: {str(error).splitlines()[0]}"


def pod_problems(where, pod):
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield f"{where}: the pod may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{where}: no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield f"{where}: the pod has a token of the cluster"
    if pod.get("hostNetwork") or pod.get("hostPID") or any("hostPath" in volume for volume in pod.get("volumes", [])):
        yield f"{where}: the pod reaches into its host"
    if pod.get("terminationGracePeriodSeconds", 30) < 60:
        yield f"{where}: no time to drain"
    for container in pod.get("initContainers", []) + pod["containers"]:
        yield from container_problems(f"{where}/{container['name']}", container)
    for container in pod["containers"]:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe not in container:
                yield f"{where}/{container['name']}: no {probe}"


def container_problems(where, container):
    context = container.get("securityContext", {})
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{where}: its root can be written"
    if context.get("allowPrivilegeEscalation") is not False or context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{where}: it keeps privileges"
    if context.get("capabilities", {}).get("add"):
        yield f"{where}: it adds privileges"
    # What a container says counts more than what its pod says.
    if context.get("runAsUser", 1) == 0 or context.get("runAsNonRoot", True) is not True or context.get("privileged"):
        yield f"{where}: it may run as root although its pod may not"
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        for what in ("cpu", "memory"):
            if what not in resources.get(kind, {}):
                yield f"{where}: no {kind}.{what}"
    for word in container.get("command", []) + container.get("args", []):
        if is_secret(word):
            yield f"{where}: a secret stands in its arguments"
    for variable in container.get("env", []):
        if SECRET.search(variable.get("value", "")):
            yield f"{where}: {variable['name']} holds a secret"
        secret = re.search("PASSWORD|TOKEN|KEYS?$|SECRET", variable["name"])
        if secret and "secretKeyRef" not in variable.get("valueFrom", {}):
            yield f"{where}: {variable['name']} is no reference to a secret"


def is_secret(text):
    return bool(SECRET.search(text) or NAMED_SECRET.search(text))


def selects(selector, labels):
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())


def cover_problems(documents):
    """Every runner has a disruption budget where it has replicas, and a network policy; every pool may scale."""
    of = lambda kind: [document for document in documents if document["kind"] == kind]
    runners = [document for document in documents if document["kind"] in RUNNERS]
    for runner in runners:
        labels = runner["spec"]["template"]["metadata"]["labels"]
        single = labels["app.kubernetes.io/component"] == "postgresql"
        if not single and not any(selects(budget["spec"]["selector"], labels) for budget in of("PodDisruptionBudget")):
            yield f"{name(runner)}: no disruption budget"
        policies = [policy["spec"] for policy in of("NetworkPolicy") if selects(policy["spec"]["podSelector"], labels)]
        if not policies or any(set(policy["policyTypes"]) != {"Ingress", "Egress"} for policy in policies):
            yield f"{name(runner)}: no network policy for both directions"
        if not selects(runner["spec"]["selector"], labels):
            yield f"{name(runner)}: it does not select its own pods"
    scalers = of("HorizontalPodAutoscaler") + of("ScaledObject")
    if not scalers:
        yield "no pool is scaled"
    if of("HorizontalPodAutoscaler") and of("ScaledObject"):
        yield "two kinds of autoscalers stand beside each other"
    served = [rule["name"]["as"] for config in of("ConfigMap") if "config.yaml" in config["data"]
              for rule in yaml.safe_load(config["data"]["config.yaml"])["externalRules"]]
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]["name"]
        (runner,) = [runner for runner in runners if runner["metadata"]["name"] == target]
        if "replicas" in runner["spec"]:
            yield f"{name(runner)}: its replicas are set beside its autoscaler"
        if "triggers" in scaler["spec"]:
            continue
        asked = [metric["external"]["metric"]["name"] for metric in scaler["spec"]["metrics"] if metric["type"] == "External"]
        if not asked:
            yield f"{name(scaler)}: it does not follow the queue"
        if served and any(metric not in served for metric in asked):
            yield f"{name(scaler)}: nobody serves {asked}: there is {served}"


def night_problems(documents):
    """Job files of nights are mounted, and their histories stay when the pod goes; gives the problems and how many there are."""
    maps = {document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"}
    problems, nights = [], 0
    for document in (document for document in documents if document["kind"] in RUNNERS):
        pod = document["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            where = f"{name(document)}/{container['name']}"
            mounts = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in container["volumeMounts"]}
            given = lambda option: [word.split("=", 1)[1] for word in container["args"] if word.startswith(f"{option}=")]
            for file in given("--nightly"):
                folder, key = file.rsplit("/", 1)
                text = maps.get(mounts.get(folder, {}).get("configMap", {}).get("name"), {}).get(key)
                if text is None:
                    problems.append(f"{where}: {file} is mounted nowhere")
                elif "cron" not in tomllib.loads(text).get("nightly", {}):
                    problems.append(f"{where}: {file} does not say when")
                nights += 1
                lasting = [mount for mount, volume in mounts.items() if "persistentVolumeClaim" in volume]
                if not any(history.startswith(f"{mount}/") for history in given("--nightly-history") for mount in lasting):
                    problems.append(f"{where}: histories of nights go with the pod")
    return problems, nights


def device_problems(documents, chart):
    """Pools that run on GPUs ask for them, and have an image with the CUDA part of libtorch."""
    with open(f"{chart}/values.yaml") as file:
        processors = yaml.safe_load(file)["image"]["worker"]
    of_processors, on_gpus = f"{processors['repository']}:{processors['tag']}", 0
    for document in (document for document in documents if document["kind"] in RUNNERS):
        for container in document["spec"]["template"]["spec"]["containers"]:
            where = f"{name(document)}/{container['name']}"
            wants, has = "--device=cuda" in container.get("args", []), container["resources"]["limits"].get("nvidia.com/gpu")
            if wants and container["image"] == of_processors:
                yield f"{where}: it runs on GPUs with {of_processors}, the image for processors"
            if wants != bool(has):
                yield f"{where}: {'it runs on GPUs and asks for none' if wants else 'it asks for GPUs and does not run on them'}"
            on_gpus += wants
    if not on_gpus:
        yield "no pool runs on GPUs"


ENDPOINTS = {"s3": "AWS_ENDPOINT_URL_S3", "gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}


def store_problems(documents):
    """Coordinators are told another address of their object store than its usual one by the variable of its own kind."""
    for document in (document for document in documents if document["kind"] in RUNNERS):
        for container in document["spec"]["template"]["spec"]["containers"]:
            stores = [word.split("=", 1)[1] for word in container.get("args", []) if word.startswith("--blobs=")]
            told = {variable["name"] for variable in container.get("env", [])} & set(ENDPOINTS.values())
            if not told <= {ENDPOINTS[store.split("://")[0]] for store in stores}:
                yield f"{name(document)}/{container['name']}: {told} says nothing of {stores}"
            if "s3" in [store.split("://")[0] for store in stores] and not told:
                yield f"{name(document)}/{container['name']}: nothing says where {stores} is"


def main():
    helm, chart, settings = sys.argv[1], sys.argv[2], sys.argv[3:]
    documents = rendered(helm, chart, settings)
    problems = [f"{name(document)}: a secret is inline" for document in documents if document["kind"] == "Secret"]
    problems += [f"{name(document)}: {key} holds a secret" for document in documents if document["kind"] == "ConfigMap"
                 for key, text in document.get("data", {}).items() if is_secret(text)]
    for document in documents:
        problems += schema_problems(document)
        if document["kind"] in RUNNERS:
            problems += pod_problems(name(document), document["spec"]["template"]["spec"])
    problems += cover_problems(documents)
    of_nights, nights = night_problems(documents)
    problems += of_nights
    problems += device_problems(documents, chart)
    problems += store_problems(documents)
    print("\n".join(problems) or f"{len(documents)} objects are right, and {nights} nights in them")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
