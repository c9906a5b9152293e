"""Runs commands and watches them: when lines come, how much memory all their processes hold, how they end."""
import os
import signal
import subprocess
import threading
import time


class Failed(Exception):
    """A command that did not do what was measured."""


def run(command, environment=None, cpus=None, on_line=None, memory=False, folder=None, accept=(0,)):
    """Runs a command to its end. Returns seconds, its output, and megabytes if `memory` is asked for.

    `on_line(line, seconds)` hears each line of its standard error, with the seconds since the command was given. A
    variable of the environment that is None is taken away.
    """
    environment = {**os.environ, **(environment or {})}
    limit = (lambda: os.sched_setaffinity(0, cpus)) if cpus else None
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={name: value for name, value in environment.items() if value is not None}, preexec_fn=limit, start_new_session=True,
    )
    sampler = Sampler(lambda: pss_mb(tree(process.pid))) if memory else None
    output, errors = [], []
    reader = threading.Thread(target=lambda: output.extend(process.stdout))
    reader.start()
    try:
        for line in process.stderr:
            errors.append(line)
            if on_line:
                on_line(line, time.perf_counter() - began)
        code = process.wait()
        seconds = time.perf_counter() - began
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if sampler:
            sampler.stop()
    reader.join()
    if code not in accept:
        raise Failed(f"{' '.join(map(str, command))} ended with {code}:\n{''.join(errors)[-2000:]}")
    result = {"seconds": seconds, "output": "".join(output)}
    if sampler:
        result["pss_mb"] = max(sampler.samples, default=0.0)
    return result


class Sampler:
    """Takes a figure twenty times a second, until it is stopped."""

    def __init__(self, take):
        self.take, self.samples, self.ended = take, [], threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self):
        while not self.ended.wait(0.05):
            self.samples.append(self.take())

    def stop(self):
        self.ended.set()
        self.thread.join()


class Others:
    """How much of the machine others use meanwhile: processor time that neither this process nor its children took."""

    def __init__(self):
        self.wall, self.taken = time.monotonic(), self._taken()

    @staticmethod
    def _taken():
        with open("/proc/stat") as file:
            user, nice, system, _, _, interrupts, soft, steal, *_ = map(int, file.readline().split()[1:])
        busy = (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return busy - own.user - own.system - own.children_user - own.children_system

    def cores(self):
        return max(0.0, (self._taken() - self.taken) / (time.monotonic() - self.wall))


def tree(root):
    """The process and all that descend from it."""
    below = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            below.setdefault(parent, []).append(int(name))
    found = [root]
    for process in found:
        found += below.get(process, [])
    return found


def pss_mb(processes):
    """What these processes hold of the machine's memory, shared pages counted once among those that share them."""
    total = 0
    for process in processes:
        try:
            with open(f"/proc/{process}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except OSError:
            continue
    return total / 1024


