#!/usr/bin/env python3
"""Renders the Helm chart and holds every object of it to the published schemas, strictly, and to what the house promises:
probes, limits, a pod without rights, secrets by reference alone. Prints what is wrong and exits 1, or counts what it saw.

    chart.py HELM CHART [--set NAME=VALUE]…
"""
import re
import subprocess
import sys

import kubernetes_validate
import yaml

SCHEMAS = "1.37"
RUNNERS = ("Deployment", "StatefulSet")


def rendered(helm, chart, settings):
    command = [helm, "template", "check", chart, *settings]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def name(document):
    return f"{document['kind']} {document['metadata']['name']}"


def schema_problems(document):
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
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        for what in ("cpu", "memory"):
            if what not in resources.get(kind, {}):
                yield f"{where}: no {kind}.{what}"
    for variable in container.get("env", []):
        secret = re.search("PASSWORD|TOKEN|KEYS?$|SECRET", variable["name"])
        if secret and "secretKeyRef" not in variable.get("valueFrom", {}):
            yield f"{where}: {variable['name']} is no reference to a secret"


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
    for scaler in of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]["name"]
        (runner,) = [runner for runner in runners if runner["metadata"]["name"] == target]
        if "replicas" in runner["spec"]:
            yield f"{name(runner)}: its replicas are set beside its autoscaler"
        if not any(metric["type"] == "External" for metric in scaler["spec"]["metrics"]):
            yield f"{name(scaler)}: it does not follow the queue"


def main():
    helm, chart, settings = sys.argv[1], sys.argv[2], sys.argv[3:]
    documents = rendered(helm, chart, settings)
    problems = [f"{name(document)}: a secret is inline" for document in documents if document["kind"] == "Secret"]
    for document in documents:
        problems += schema_problems(document)
        if document["kind"] in RUNNERS:
            problems += pod_problems(name(document), document["spec"]["template"]["spec"])
    problems += cover_problems(documents)
    gpus = [container["resources"]["limits"].get("nvidia.com/gpu") for document in documents if document["kind"] in RUNNERS
            for container in document["spec"]["template"]["spec"]["containers"]]
    if not any(gpus):
        problems.append("no pool asks for a GPU")
    print("\n".join(problems) or f"{len(documents)} objects are right")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
