#!/usr/bin/env python3
"""Holds the Compose file to what the house promises: no root, a root that cannot be written, limits, time to drain, no
secret inline. Prints what is wrong and exits 1, or counts the services."""
import re
import sys

import yaml

with open(sys.argv[1]) as file:
    text = file.read()
document = yaml.safe_load(text)
problems = []
for name, service in document["services"].items():
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
    problems += [f"{name}: not so: {what}" for what, is_so in wanted.items() if not is_so]
    named = {volume.split(":")[0] for volume in service.get("volumes", []) if re.match("[a-z]+:", volume)}
    problems += [f"{name}: volume {volume} is not declared" for volume in named - set(document["volumes"])]
print("\n".join(problems) or f"{len(document['services'])} services are right")
sys.exit(bool(problems))
