"""Run programs and measure them: time, memory, CPU, what fio says. Decides nothing about subjects."""

import json
import os
import re
import shutil
import signal
import socket as socketlib
import subprocess
import sys
import tempfile
import time


class Failed(Exception):
    """A program did not do what the measurement needs."""


# Forks, runs its arguments, prints seconds, KiB and seconds of CPU. An interpreter of its own without
# modules: a process begins its life with the memory peak of whoever forked it, and this one's is small.
LAUNCHER = """
import os, sys, time
began = time.perf_counter()
child = os.fork()
if child == 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - began, usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def run(command):
    """Run a program that must succeed; seconds, peak memory (KiB), seconds of CPU of all of it."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LAUNCHER, *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
    seconds, memory, cpu = done.stdout.split()
    return float(seconds), int(memory), float(cpu)


def disk_use(path):
    """Bytes that a file takes on its file system."""
    return os.stat(path).st_blocks * 512


def greets(socket):
    """Whether a server greets who connects."""
    with socketlib.socket(socketlib.AF_UNIX) as client:
        try:
            client.connect(socket)
        except ConnectionRefusedError:
            return False
        return len(client.recv(8)) == 8


class Server:
    """A running NBD server with one unix socket; ended by `stop`."""

    def __init__(self, command, socket):
        self.socket = socket
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        began = time.monotonic()
        deadline = began + 60
        while not os.path.exists(socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                said = self.log.read().decode(errors="replace").strip()
                self.stop()
                raise Failed(f"{' '.join(map(str, command))}: did not start: {said}")
            time.sleep(0.001)
        while not greets(socket) and time.monotonic() < deadline:
            time.sleep(0.001)
        # Seconds until it greeted a client, to the millisecond.
        self.started = time.monotonic() - began

    def uri(self):
        return f"nbd+unix:///?socket={self.socket}"

    def cpu(self):
        """Seconds of CPU of all its threads so far, user and system, to the nanosecond.

        The kernel's clock of another process: the same sum as utime + stime of /proc/PID/stat,
        which counts in hundredths of a second.
        """
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def memory_peak(self):
        """Peak resident memory in KiB."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+)", status.read())[1])

    def read_bytes(self):
        """Bytes it has had read from storage so far."""
        with open(f"/proc/{self.process.pid}/io") as counts:
            return int(re.search(r"^read_bytes: (\d+)", counts.read(), re.MULTILINE)[1])

    def stop(self):
        """End it in order; seconds it took."""
        began = time.perf_counter()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.log.close()
        return time.perf_counter() - began


def fio(uri, **options):
    """Run fio's nbd engine against a server; what it says of its one job."""
    command = ["fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"]
    command += ["--thread", "--percentile_list=50:99"]
    command += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    start = done.stdout.find("{")
    if done.returncode != 0 or start < 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return json.loads(done.stdout[start:])["jobs"][0]


def load(server, **options):
    """One load by fio on a server: operations a second, CPU each, latencies, memory."""
    before = server.cpu()
    job = fio(server.uri(), **options)
    used = server.cpu() - before
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    wait = side["clat_ns"].get("percentile", {})
    return {
        "iops": side["iops"],
        "cpu_us": used * 1e6 / side["total_ios"],
        "p50_us": wait.get("50.000000", 0) / 1000,
        "p99_us": wait.get("99.000000", 0) / 1000,
        "memory_kib": server.memory_peak(),
    }


def flushing_load(server, diskferry, count, seed):
    """Random 4 KiB writes, 32 outstanding, a flush after every 32, by diskferry's own client.

    Not by fio: its fsync=32 sends through the nbd engine of 3.33 a flush for each write or two as
    long as the count of writes stands at a multiple of 32, and how often depends on the server.
    """
    before = server.cpu()
    command = [
        diskferry, "bench", server.uri(), "--json", "--pattern", "random-write", "--depth", "32",
        "--flush-every", "32", "--ops", str(count), "--seed", str(seed), "--destroy-data",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    used = server.cpu() - before
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
    said = json.loads(done.stdout)
    return {
        "iops": said["ops"] / said["seconds"],
        "cpu_us": used * 1e6 / said["ops"],
        "p50_us": said["latency"]["p50_us"],
        "p99_us": said["latency"]["p99_us"],
        "flush_p50_us": said["flush_latency"]["p50_us"],
        "memory_kib": server.memory_peak(),
    }


def syscalls(server, **options):
    """System calls of the server a request, by strace; None where there is none, or where it may not trace."""
    if shutil.which("strace") is None:
        return None
    with tempfile.NamedTemporaryFile(mode="r") as table:
        trace = subprocess.Popen(
            ["strace", "-f", "-c", "-o", table.name, "-p", str(server.process.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.5)
        if trace.poll() is not None:
            return None
        job = fio(server.uri(), **options)
        trace.send_signal(signal.SIGINT)
        trace.wait()
        totals = [line.split() for line in table.read().splitlines() if line.endswith("total")]
    requests = job["read"]["total_ios"] + job["write"]["total_ios"]
    return int(totals[0][3]) / requests if totals else None
