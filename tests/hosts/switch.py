"""A network of hosts for tests: one namespace each, joined by a switch that delays, loses and cuts.

    switch.py NAME HOSTS

makes the namespaces NAME-1 ... NAME-HOSTS with the addresses 10.77.0.1 ... and says `ready`. Each line on stdin is a
JSON object that replaces the state of the network: {"delay_ms": 0, "loss": 0.0, "cut": [[from, to], ...]}; each is
answered with a line that tells what happened to frames under the state before it, for each pair of hosts between which
there were any: [{"from": 1, "to": 2, "passed": 0, "delayed": 0, "lost": 0, "cut": 0}, ...]. The end of stdin takes
everything down. Needs root, `ip` and /dev/net/tun.
"""
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import struct
import subprocess
import sys
import time

SET_INTERFACE = 0x400454CA  # TUNSETIFF
TAP_WITHOUT_HEADER = 0x0002 | 0x1000  # IFF_TAP | IFF_NO_PI
FRAME_BYTES = 65_536


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def plug_in(name, host):
    """The switch's end of a cable into a new namespace."""
    port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    interface = f"gwtap{host}"
    fcntl.ioctl(port, SET_INTERFACE, struct.pack("16sH", interface.encode(), TAP_WITHOUT_HEADER))
    space = f"{name}-{host}"
    ip("netns", "add", space)
    ip("link", "set", interface, "netns", space, "name", "eth0")
    ip("-n", space, "addr", "add", f"10.77.0.{host}/24", "dev", "eth0")
    ip("-n", space, "link", "set", "eth0", "up")
    ip("-n", space, "link", "set", "lo", "up")
    return port


class Switch:
    def __init__(self, name, hosts):
        self.host_of = {plug_in(name, host): host for host in hosts}
        self.port_of = {host: port for port, host in self.host_of.items()}
        self.seen = {}
        self.waiting = []
        self.number = itertools.count()
        self.random = random.Random(1)
        self.state = {"delay_ms": 0, "loss": 0.0, "cut": []}
        self.toll = {}

    def take(self, port):
        try:
            frame = os.read(port, FRAME_BYTES)
        except OSError:
            return
        here = self.host_of[port]
        self.seen[frame[6:12]] = here
        known = self.seen.get(frame[:6])
        targets = [known] if known else [host for host in self.port_of if host != here]
        for target in targets:
            fate = self.fate(here, target)
            nothing = {"from": here, "to": target, "passed": 0, "delayed": 0, "lost": 0, "cut": 0}
            self.toll.setdefault((here, target), nothing)[fate] += 1
            if fate in ("cut", "lost"):
                continue
            due = time.monotonic() + self.state["delay_ms"] / 1000
            heapq.heappush(self.waiting, (due, next(self.number), target, frame))

    def fate(self, here, target):
        if [here, target] in self.state["cut"]:
            return "cut"
        if self.random.random() < self.state["loss"]:
            return "lost"
        return "delayed" if self.state["delay_ms"] else "passed"

    def pass_on(self):
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(self.waiting)
            try:
                os.write(self.port_of[target], frame)
            except OSError:
                pass  # A full queue loses frames, as a wire does.

    def serve(self):
        orders = b""
        while True:
            wait = max(0.0, self.waiting[0][0] - time.monotonic()) if self.waiting else None
            readable, _, _ = select.select([*self.host_of, 0], [], [], wait)
            for port in readable:
                if port != 0:
                    self.take(port)
                    continue
                piece = os.read(0, 4096)
                if not piece:
                    return
                orders += piece
                while b"\n" in orders:
                    line, orders = orders.split(b"\n", 1)
                    toll, self.toll = list(self.toll.values()), {}
                    self.state = json.loads(line)
                    print(json.dumps(toll), flush=True)
            self.pass_on()


def main():
    name, hosts = sys.argv[1], range(1, int(sys.argv[2]) + 1)
    try:
        switch = Switch(name, hosts)
        print("ready", flush=True)
        switch.serve()
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", f"{name}-{host}"], check=False, stderr=subprocess.DEVNULL)


main()
