"""What a move over a link of limited bandwidth costs the client and the link.

Two sites in network namespaces of their own, joined by a link of so many Mbit/s each way. The disk has 2 GiB: 1 GiB that
does not compress, 512 MiB that does, the rest never written. A client writes 4 KiB at random places of its first
quarter at a steady rate. The source stays in step (--manual) for some seconds, then switches over. Several
programs are measured in turn; figures are medians of the rounds. Run by scripts/measure-link.sh.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from sites import ADDRESSES, MIB, SIZE, Diskferry, Namespaces, image, ip

HOT = SIZE // 4


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


class Link(Namespaces):
    """Two namespaces and what joins them."""

    def __init__(self, mbit):
        super().__init__()
        ends = [f"df{os.getpid()}a", f"df{os.getpid()}b"]
        source, target = self.names.values()
        ip("link", "add", ends[0], "netns", source, "type", "veth", "peer", "name", ends[1], "netns", target)
        for (site, name), end in zip(self.names.items(), ends):
            ip("-n", name, "addr", "add", f"{ADDRESSES[site]}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            shape = ["tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "80ms"]
            subprocess.run(["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", end, "root", *shape], check=True)


class Move(Diskferry):
    """One move, measured."""

    def __init__(self, program, link, folder, words):
        super().__init__(program, link, folder)
        self.words = words

    def client(self, name):
        """fio's reports go to a file; it ends with SIGINT."""
        return self.start([
            "fio", "--name=client", "--ioengine=nbd", f"--uri={self.uri}", "--rw=randwrite", "--bs=4k", "--iodepth=16",
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
        self.prepare(raw)
        quiet = self.client("quiet")
        time.sleep(4)
        iops, p99 = self.client_ends(quiet, "quiet")
        figures = {"iops before": iops, "p99 before ms": p99}
        busy = self.client("busy")
        time.sleep(1)
        began = time.monotonic()
        self.begin()
        self.until("in step", self.is_ready)
        figures["in step s"] = time.monotonic() - began
        figures["sent MiB"] = self.status()["sent"] / MIB
        figures["iops"], figures["p99 ms"] = self.client_ends(busy, "busy")
        again = self.client("again")
        time.sleep(self.words.in_step)
        self.switch()
        figures["pause ms"] = self.pause_ms()
        self.client_ends(again, "again")
        return figures


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
