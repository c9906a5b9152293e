#!/usr/bin/env python3
"""Prints the query by which pools are scaled, as Prometheus gets it for the namespace `here`.

    pool_query.py HELM CHART [--set NAME=VALUE]…
"""
import subprocess
import sys

import yaml

helm, chart, settings = sys.argv[1], sys.argv[2], sys.argv[3:]
command = [helm, "template", "check", chart, "--namespace", "here", *settings]
text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
documents = [document for document in yaml.safe_load_all(text) if document]
queries = {trigger["metadata"]["query"] for document in documents if document["kind"] == "ScaledObject"
           for trigger in document["spec"]["triggers"]}
for document in documents:
    rules = yaml.safe_load(document["data"]["config.yaml"]) if "config.yaml" in document.get("data", {}) else {}
    for rule in rules.get("externalRules", []):
        # As prometheus-adapter fills it in for an autoscaler of that namespace without a selector.
        query = rule["metricsQuery"].replace("<<.Series>>", "graftwork_stages")
        queries.add(query.replace("<<.LabelMatchers>>", 'namespace="here"'))
(query,) = queries
print(query)
