"""What a move over a link of limited bandwidth costs the client and the link.

Two sites in network namespaces of their own, joined by a link of so many Mbit/s each way. The disk has 2 GiB: 1 GiB that
does not compress, 512 MiB that does, the rest never written. A client writes 4 KiB at random places of its first
quarter at a steady rate. The source stays in step (--manual) for some seconds, then switches over. Several
programs are measured in turn; figures are medians of the rounds. Run by scripts/measure-link.sh.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

MIB = 1 << 20
SIZE = 2048 * MIB
HOT = SIZE // 4
SITES = {"source": "10.77.3.1", "target": "10.77.3.2"}


def arguments():
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--diskferry", required=True, type=Path)
    words.add_argument("--against", action="append", default=[], type=Path, help="another build; may be given several times")
    words.add_argument("--directory", required=True, type=Path, help="where the disks go")
    words.add_argument("--json", type=Path, help="all figures, as JSON")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--mbit", type=int, default=200)
    words.add_argument("--rate", type=int, default=2000, help="writes a second")
    words.add_argument("--in-step", type=float, default=4, help="seconds in step before the switchover")
    return words.parse_args()


def ip(*words, check=True):
    subprocess.run(["ip", *words], check=check, capture_output=True)


class Link:
    """Two namespaces and what joins them."""

    def __init__(self, mbit):
        self.names = {site: f"df-{os.getpid()}-{site}" for site in SITES}
        ends = [f"df{os.getpid()}a", f"df{os.getpid()}b"]
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        source, target = self.names.values()
        ip("link", "add", ends[0], "netns", source, "type", "veth", "peer", "name", ends[1], "netns", target)
        for (site, name), end in zip(self.names.items(), ends):
            ip("-n", name, "addr", "add", f"{SITES[site]}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            shape = ["tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "80ms"]
            subprocess.run(["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", end, "root", *shape], check=True)

    def at(self, site):
        return ["ip", "netns", "exec", self.names[site]]

    def close(self):
        for name in self.names.values():
            ip("netns", "del", name, check=False)


def image(path):
    """What the disk holds in the beginning, the same each time: 1 GiB that nothing makes shorter, 512 MiB of words that
    zstd makes a third of, of which every second granule is there eight times, and nothing in the rest."""
    chance = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(3, 10))) for _ in range(4000)]
    text = bytearray()
    while len(text) < 64 * MIB:
        text += " ".join(chance.choices(words, k=20000)).encode() + b"\n"
    text = text[: 64 * MIB]
    with open(path, "wb") as file:
        for _ in range(1024):
            file.write(chance.randbytes(MIB))
        for turn in range(8):
            for at in range(0, len(text), 2 * 4096):
                text[at : at + 16] = b"%4d %10d " % (turn, at)
            file.write(text)
        file.truncate(SIZE)


class Move:
    """One move, in a folder of its own."""

    def __init__(self, program, link, folder, words):
        self.program, self.link, self.folder, self.words = str(program.resolve()), link, folder, words
        self.running = []
        self.environment = dict(os.environ, DISKFERRY_RUN_DIR=str(folder / "run"))

    def run(self, *words):
        done = subprocess.run(
            [self.program, *words], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"error: {' '.join(words)}: {done.stderr}")
        return done.stdout

    def plainly(self, *verb):
        """Earlier builds do not ask for it."""
        return ["--plain"] if "--plain" in self.run(*verb, "--help") else []

    def start(self, command):
        log = (self.folder / f"{len(self.running)}.log").open("w")
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        self.running.append(process)
        return process

    def until(self, what, true):
        end = time.monotonic() + 300
        while not true():
            if time.monotonic() > end:
                raise SystemExit(f"error: waited in vain: {what}")
            time.sleep(0.02)

    def status(self):
        return json.loads(self.run("mirror", "status", "disk.vhdx", "--json").splitlines()[-1])

    def client(self, name):
        """fio's reports go to a file; it ends with SIGINT."""
        address = f"nbd+unix:///disk?socket={self.folder}/s"
        return self.start([
            "fio", "--name=client", "--ioengine=nbd", f"--uri={address}", "--rw=randwrite", "--bs=4k", "--iodepth=16",
            f"--rate_iops={self.words.rate}", f"--size={HOT}", "--norandommap", "--time_based", "--runtime=600",
            "--output-format=json", f"--output={self.folder}/{name}.json",
        ])  # fmt: skip

    def client_ends(self, process, name):
        process.send_signal(signal.SIGINT)
        process.wait(30)
        text = (self.folder / f"{name}.json").read_text()
        side = json.loads(text[text.index("{") :])["jobs"][0]["write"]
        return side["iops"], side["clat_ns"]["percentile"]["99.000000"] / 1e6

    def measure(self, raw):
        self.folder.joinpath("in").mkdir()
        self.run("convert", str(raw), "disk.vhdx", "--quiet")
        socket = self.folder / "s"
        self.start([*self.link.at("source"), self.program, "serve", "disk.vhdx", "--listen", f"unix:{socket}"])
        self.until("serve", socket.exists)
        there = SITES["target"]
        self.start([
            *self.link.at("target"), self.program, "receive", "--listen", f"tcp:{there}:9000", "--into", "in",
            "--serve", f"tcp:{there}:10809", *self.plainly("receive"),
        ])  # fmt: skip
        time.sleep(1)
        quiet = self.client("quiet")
        time.sleep(4)
        iops, p99 = self.client_ends(quiet, "quiet")
        figures = {"iops before": iops, "p99 before ms": p99}
        busy = self.client("busy")
        time.sleep(1)
        began = time.monotonic()
        plainly = self.plainly("mirror", "start")
        self.run("mirror", "start", "disk.vhdx", "--to", f"tcp:{there}:9000", "--manual", *plainly)
        self.until("in step", lambda: self.status()["stage"] == "synced")
        figures["in step s"] = time.monotonic() - began
        figures["sent MiB"] = self.status()["sent"] / MIB
        figures["iops"], figures["p99 ms"] = self.client_ends(busy, "busy")
        again = self.client("again")
        time.sleep(self.words.in_step)
        self.run("mirror", "cutover", "disk.vhdx", "--wait")
        figures["pause ms"] = self.status()["pause"] / 1000
        self.client_ends(again, "again")
        return figures

    def close(self):
        for process in reversed(self.running):
            if process.poll() is None:
                process.terminate()
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main():
    words = arguments()
    programs = [words.diskferry, *words.against]
    samples = {str(program): [] for program in programs}
    with tempfile.TemporaryDirectory(dir=words.directory.resolve()) as place:
        raw = Path(place) / "raw"
        image(raw)
        for turn in range(words.rounds):
            for program in programs:
                print(f"link: round {turn + 1} of {words.rounds}, {program}", flush=True)
                link = Link(words.mbit)
                with tempfile.TemporaryDirectory(dir=place) as folder:
                    move = Move(program, link, Path(folder), words)
                    try:
                        samples[str(program)].append(move.measure(raw))
                    finally:
                        move.close()
                        link.close()
    names = list(next(iter(samples.values()))[0])
    print(f"\n| program | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for program, all_of_it in samples.items():
        medians = [statistics.median(sample[name] for sample in all_of_it) for name in names]
        print(f"| {program} | {' | '.join(f'{value:,.4g}' for value in medians)} |")
    if words.json:
        words.json.write_text(json.dumps(samples, indent=1))


main()
