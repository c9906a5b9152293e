#!/usr/bin/env python3
"""Holds secrets that were made against those that the Helm chart names: each is there, with the keys that are read of it, and
none was made that nobody reads. Prints what is wrong and exits 1, or counts them.

    secrets.py HELM CHART SECRETS [--set NAME=VALUE]…
"""
import subprocess
import sys

import yaml


def wanted(helm, chart, settings):
    """Names of secrets that pods read, with the keys that they read of each."""
    command = [helm, "template", "graftwork", chart, *settings]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    secrets = {}
    for document in yaml.safe_load_all(text):
        pod = (document or {}).get("spec", {}).get("template", {}).get("spec", {})
        for volume in pod.get("volumes", []):
            if "secret" in volume:
                secret = volume["secret"]
                secrets.setdefault(secret["secretName"], set()).update(item["key"] for item in secret.get("items", []))
        for container in pod.get("initContainers", []) + pod.get("containers", []):
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    secrets.setdefault(reference["name"], set()).add(reference["key"])
    return secrets


def main():
    helm, chart, made, settings = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    with open(made) as file:
        made = {document["metadata"]["name"]: set(document["data"]) for document in yaml.safe_load_all(file) if document}
    asked = wanted(helm, chart, settings)
    problems = [f"nobody made the secret {name}" for name in sorted(asked.keys() - made.keys())]
    problems += [f"no pod reads the secret {name}" for name in sorted(made.keys() - asked.keys())]
    problems += [f"the secret {name} has no {key}" for name in sorted(asked.keys() & made.keys())
                 for key in sorted(asked[name] - made[name])]
    print("\n".join(problems) or f"{len(asked)} secrets are all")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
