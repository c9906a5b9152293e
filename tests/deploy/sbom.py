#!/usr/bin/env python3
"""Holds an SBOM to CycloneDX's published schema, and its graph to what the house promises: each component once, each one that is
depended on told, and each reached from the application. Prints what is wrong and exits 1, or counts the components.

    sbom.py FILE
"""
import json
import sys
from importlib import resources

import jsonschema
from referencing import Registry, Resource


def schema_problems(document):
    folder = resources.files("cyclonedx.schema") / "_res"
    # They name each other by files beside them.
    read = lambda address: json.loads((folder / address.rsplit("/", 1)[-1]).read_text())
    registry = Registry(retrieve=lambda address: Resource.from_contents(read(address)))
    validator = jsonschema.Draft7Validator(read("bom-1.5.SNAPSHOT.schema.json"), registry=registry)
    for error in validator.iter_errors(document):
        yield f"{error.json_path}: {error.message[:200]}"


def graph_problems(document):
    application = document["metadata"]["component"]["bom-ref"]
    known = [application, *(component["bom-ref"] for component in document["components"])]
    yield from (f"{reference} is told twice" for reference in set(known) if known.count(reference) > 1)
    graph = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    yield from (f"the graph does not have {reference}" for reference in set(known) - graph.keys())
    yield from (f"{reference} is in the graph and no component" for reference in graph.keys() - set(known))
    reached, left = set(), [application]
    while left:
        reference = left.pop()
        if reference not in reached:
            reached.add(reference)
            left += graph.get(reference, [])
    yield from (f"{reference} is depended on and not told" for reference in reached - set(known))
    yield from (f"nothing depends on {reference}" for reference in set(known) - reached)


def main():
    with open(sys.argv[1]) as file:
        document = json.load(file)
    problems = [*schema_problems(document), *graph_problems(document)]
    print("\n".join(sorted(problems)) or f"{len(document['components'])} components are right")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
