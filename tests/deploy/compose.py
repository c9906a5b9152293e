#!/usr/bin/env python3
"""Holds the Compose file to the published schema, strictly, and to what the house promises: no root, a root that cannot be
written, limits, time to drain, no secret inline. Prints what is wrong and exits 1, or counts the services.

    compose.py FILE [SERVICE]

With a service it says as JSON how its containers are started where nothing is set: user, command, environment, volumes, how many.
"""
import json
import re
import sys

import yaml
from compose_viz.spec.compose_spec import ComposeSpecification
from pydantic import ValidationError


def schema_problems(document):
    # Whatever begins so is everybody's own.
    document = {key: value for key, value in document.items() if not key.startswith("x-")}
    try:
        ComposeSpecification.model_validate(document)
    except ValidationError as error:
        for wrong in error.errors():
            yield f"{'.'.join(str(part) for part in wrong['loc'])}: {wrong['msg']}"


def service_problems(name, service, volumes):
    wanted = {
        "runs as a user of its own": str(service.get("user", "0")).split(":")[0] not in ("0", "root"),
        "cannot write its root": service.get("read_only") is True,
        "keeps no capability": service.get("cap_drop") == ["ALL"],
        "gains no privilege": "no-new-privileges:true" in service.get("security_opt", []),
        "has bounds": "mem_limit" in service and "cpus" in service,
        "may drain": int(service.get("stop_grace_period", "10s")[:-1]) >= 60,
        "comes back": service.get("restart") == "unless-stopped",
        "names a version": not service["image"].endswith(":latest") and ":" in service["image"],
        "holds no secret": not re.search("TOKEN|PASSWORD|SECRET", yaml.safe_dump(service)),
    }
    yield from (f"{name}: not so: {what}" for what, is_so in wanted.items() if not is_so)
    named = {volume.split(":")[0] for volume in service.get("volumes", []) if re.match("[a-z]+:", volume)}
    yield from (f"{name}: volume {volume} is not declared" for volume in named - set(volumes))


def started(service):
    """Variables of the host have no value, so their defaults count."""
    plain = lambda text: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return {
        "user": service["user"],
        "command": [plain(word) for word in service["command"]],
        "environment": service.get("environment", {}),
        "volumes": [plain(volume) for volume in service["volumes"]],
        "replicas": service.get("deploy", {}).get("replicas", 1),
    }


def main():
    with open(sys.argv[1]) as file:
        document = yaml.safe_load(file)
    if len(sys.argv) > 2:
        print(json.dumps(started(document["services"][sys.argv[2]])))
        return
    problems = list(schema_problems(document))
    for name, service in document["services"].items():
        problems += service_problems(name, service, document["volumes"])
    print("\n".join(problems) or f"{len(document['services'])} services are right")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
