"""How long writes take while their disk moves.

Two sites on this machine; a client writes 4 KiB at random places at a steady rate, flushing now and
then, before the disk moves, while it is copied, and while the source forwards to the new site. Each
round makes everything anew; figures are medians of the rounds. Run by scripts/measure-move.sh.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

PHASES = ["before", "during", "in-step", "cutover", "after"]
# The promise: this many times the latency without a mirror, or so many microseconds more.
FACTOR, EXTRA_US = 2.0, 3000
LEAST_COPY = 100 << 20


def arguments():
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--diskferry", required=True, type=Path)
    words.add_argument("--directory", required=True, type=Path, help="where the disks go")
    words.add_argument("--json", type=Path, help="all figures, as JSON")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--data-mb", type=int, default=3072, help="how much there is to copy")
    words.add_argument("--rate", type=int, default=800, help="writes a second")
    words.add_argument("--quiet-seconds", type=float, default=5)
    return words.parse_args()


class Round:
    """One move, in a folder of its own."""

    def __init__(self, words, folder):
        self.words = words
        self.folder = folder
        self.running = []
        self.environment = dict(os.environ, DISKFERRY_RUN_DIR=str(folder / "run"))

    def command(self, *words):
        return [str(self.words.diskferry.resolve()), *words]

    def run(self, *words):
        command = self.command(*words)
        ran = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        if ran.returncode:
            raise SystemExit(f"error: {' '.join(command)}: {ran.stderr}")
        return ran.stdout

    def start(self, name, *words):
        out = (self.folder / f"{name}.out").open("w")
        log = (self.folder / f"{name}.log").open("w")
        command = self.command(*words)
        one = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=out, stderr=log
        )
        self.running.append(one)
        return one

    def says(self, name, what):
        for _ in range(400):
            found = re.search(what, (self.folder / f"{name}.out").read_text())
            if found:
                return found
            time.sleep(0.05)
        log = (self.folder / f"{name}.log").read_text()
        raise SystemExit(f"error: {name} never says {what}: {log}")

    def end(self):
        for one in reversed(self.running):
            if one.poll() is None:
                one.send_signal(signal.SIGTERM)
            one.wait()

    def phase(self, name):
        (self.folder / "phase").write_text(name)

    def status(self):
        return json.loads(self.run("mirror", "status", "disk.vhdx", "--json"))

    def until(self, wanted):
        while True:
            status = self.status()
            if wanted(status):
                return status
            time.sleep(0.1)

    def fill(self):
        """Random bytes: nothing that could be sent as a hole."""
        uri = f"nbd+unix:///disk?socket={self.folder}/disk.sock"
        source = self.folder.parent / "random.img"
        if not source.exists():
            count = str(self.words.data_mb)
            subprocess.run(
                ["dd", "if=/dev/urandom", f"of={source}", "bs=1M", f"count={count}", "status=none"],
                check=True,
            )
        subprocess.run(["nbdcopy", "--flush", source, uri], check=True)
        # What is written back later would be measured as if it were ours.
        os.sync()

    def measure(self):
        self.run("create", "disk.vhdx", "64G", "--block-size", "1M")
        self.start("serve", "serve", "disk.vhdx", "--listen", "unix:disk.sock", "--json")
        self.says("serve", "serving")
        self.fill()
        (self.folder / "into").mkdir()
        self.start(
            "receive", "receive", "--listen", "tcp:127.0.0.1:0", "--into", "into",
            "--serve", "unix:there.sock", "--json",
        )  # fmt: skip
        address = self.says("receive", r'"listen":"(tcp:[^"]*)"').group(1)
        self.phase("settle")
        load = self.start(
            "load", "load", "run", "unix:disk.sock", "--length", "512M", "--ledger", "ledger",
            "--rate", str(self.words.rate), "--flush-every", "32", "--phases", "phase", "--json",
        )  # fmt: skip
        time.sleep(1)
        self.phase("before")
        time.sleep(self.words.quiet_seconds)
        self.phase("during")
        started = time.monotonic()
        self.run("mirror", "start", "disk.vhdx", "--to", address, "--manual")
        status = self.until(lambda status: status["stage"] == "synced")
        seconds = time.monotonic() - started
        self.phase("in-step")
        time.sleep(self.words.quiet_seconds)
        self.phase("cutover")
        self.run("mirror", "cutover", "disk.vhdx")
        moved = self.until(lambda status: status["ended"])
        if moved["error"]:
            raise SystemExit(f"error: {moved['error']}")
        time.sleep(0.2)
        self.phase("after")
        time.sleep(self.words.quiet_seconds)
        load.send_signal(signal.SIGTERM)
        if load.wait():
            raise SystemExit(f"error: the client failed: {(self.folder / 'load.log').read_text()}")
        summary = json.loads((self.folder / "load.out").read_text().splitlines()[-1])
        return {
            "copy_bytes_per_second": status["found"] / seconds,
            "pause_us": moved["pause"],
            "phases": {one["phase"]: one for one in summary["phases"]},
        }


def table(rounds):
    def median(phase, kind, what):
        return statistics.median(one["phases"][phase][kind][what] for one in rounds)

    lines = ["| phase | write p50 | write p99 | flush p50 | flush p99 |", "|---|---|---|---|---|"]
    for phase in PHASES:
        figures = [median(phase, kind, what) for kind in ("writes", "flushes") for what in KEYS]
        lines.append(f"| {phase} | " + " | ".join(f"{f / 1000:.2f} ms" for f in figures) + " |")
    return lines


KEYS = ("p50_us", "p99_us")


def verdict(rounds):
    def p99(phase):
        return statistics.median(one["phases"][phase]["writes"]["p99_us"] for one in rounds)

    before, during = p99("before"), p99("during")
    most = max(FACTOR * before, before + EXTRA_US)
    rate = statistics.median(one["copy_bytes_per_second"] for one in rounds)
    pause = statistics.median(one["pause_us"] for one in rounds)
    met = during <= most and rate >= LEAST_COPY
    return [
        f"copied at {rate / (1 << 20):.0f} MiB/s; pause {pause / 1000:.1f} ms",
        f"p99 during {during / 1000:.2f} ms, at most {most / 1000:.2f} ms: "
        + ("met" if met else "MISSED"),
    ], met


def main():
    words = arguments()
    place = words.directory / "measure-move"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    place = place.resolve()
    rounds = []
    try:
        for number in range(words.rounds):
            folder = place / f"round-{number}"
            folder.mkdir()
            one = Round(words, folder)
            try:
                rounds.append(one.measure())
            finally:
                one.end()
            shutil.rmtree(folder)
            during = rounds[-1]["phases"]["during"]["writes"]
            print(f"round {number}: during: {during}", file=sys.stderr)
    finally:
        (place / "random.img").unlink(missing_ok=True)
    text, met = verdict(rounds)
    print("\n".join(table(rounds) + [""] + text))
    if words.json:
        words.json.write_text(json.dumps(rounds, indent=1))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
