"""What a move over a line that is slow, far, lossy or breaks, or over a cable, costs, beside QEMU's mirror.

Two sites in network namespaces of their own, joined by testlink: TUN interfaces, so that TCP is the kernel's own; or, for
the cable, by a veth pair. The disk (--size) is half data that does not compress and a quarter that does; the rest was never written. Where a client
writes, it writes 4 KiB at random places of the first quarter. Every subject starts anew in each round and takes its turn;
figures are medians of the rounds. A mirror that is not in step within the limit of its case is given up; what it would have
cost to end it is then how long the client had to stand still until it was ("forced pause").

Cases:
  slow     200 Mbit/s, no delay, 2000 writes a second
  far      the same, 80 ms there and back
  busy     200 Mbit/s, no delay, as many writes as it takes; ours is told to be in step within 85 s
  killed   200 Mbit/s, 80 ms, no client; the target is killed when half of the disk is there, and comes back a second later
  lossy    200 Mbit/s, 80 ms, one packet of a thousand lost, Reno, no client
  lan      a cable as fast as this machine, no client; the processor's time is that of the programs at both ends, from the
           beginning until it is in step, for each GiB that is allocated

Bytes on the wire are those of IP packets that went over the line towards the target. A pause is the longest time without an answer
to any of the client's writes, from half a second before the switchover to a second after it. QEMU's switchover is
block-job-complete: like ours, its client stays and is served from the target through the source. The pause of the disk is what a
machine sees that moves with its disk: from the last answer before that time until a read is answered which waits at the target for
the disk to be in service there; QEMU serves nothing there. Run by scripts/measure-wan.sh.
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

from qemu_mirror import Failed, Qemu
from sites import ADDRESSES, MIB, Diskferry, Namespaces, image, ip

QUIET = 5
AFTER = 1.5


class Case:
    """What is measured, over which line, and what is asked."""

    def __init__(self, measure, asked, rate=None, text=True, line=(), reno=False, terms=()):
        self.measure, self.asked, self.rate, self.text = measure, asked, rate, text
        # None is a cable.
        self.line, self.reno, self.terms = line, reno, terms


class Line(Namespaces):
    """Two namespaces, and the link between them while it is open."""

    def __init__(self, program, case):
        super().__init__()
        ends = [f"{self.names[site]}={address}/24" for site, address in ADDRESSES.items()]
        command = [str(program.resolve()), *ends, "--rate", "200M", *case.line]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()
        if case.reno:
            for site in ADDRESSES:
                setting = "echo reno >/proc/sys/net/ipv4/tcp_congestion_control"
                subprocess.run([*self.at(site), "sh", "-c", setting], check=True)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("error: testlink ended")
        return json.loads(line)

    def wire(self):
        """Bytes over the line towards the target so far."""
        self.process.stdin.write("count\n")
        self.process.stdin.flush()
        return self.answer()["there"]["carried"]["bytes"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)
        super().close()


class Cable(Namespaces):
    """Two namespaces, and a veth pair between them."""

    def __init__(self):
        super().__init__()
        source, target = (self.names[site] for site in ADDRESSES)
        ip("-n", source, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", target)
        for site, address in ADDRESSES.items():
            ip("-n", self.names[site], "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", self.names[site], "link", "set", "cable", "up")

    def wire(self):
        """Bytes over the cable towards the target so far."""
        command = [*self.at("target"), "ip", "-json", "-stats", "link", "show", "cable"]
        shown = subprocess.run(command, check=True, capture_output=True).stdout
        return json.loads(shown)[0]["stats64"]["rx"]["bytes"]


class Client:
    """fio, all of whose writes are looked at afterwards."""

    def __init__(self, subject, rate, size):
        self.folder = subject.folder
        paced = [f"--rate_iops={rate}"] if rate else []
        self.process = subject.start([
            "fio", "--name=client", "--thread", "--ioengine=nbd", f"--uri={subject.uri}", "--rw=randwrite", "--bs=4k",
            "--iodepth=16", f"--size={size}", "--norandommap", "--time_based", "--runtime=3600", *paced,
            f"--write_lat_log={self.folder}/client", "--log_unix_epoch=1", "--disable_clat=1", "--disable_slat=1",
            "--output-format=json", f"--output={self.folder}/client.json",
        ])  # fmt: skip

    def stands(self):
        self.process.send_signal(signal.SIGSTOP)

    def ends(self):
        """When each write was answered, in seconds of the epoch, and after how many ms."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return []
        lines = (self.folder / "client_lat.1.log").read_text().splitlines()
        fields = (line.split(",", 2) for line in lines)
        return sorted((int(at) / 1e3, int(took) / 1e6) for at, took, _ in fields)


def span_of(answers, since, until):
    """Writes a second and the 99th percentile in ms of those answered in between."""
    took = sorted(ms for at, ms in answers if since <= at < until)
    if not took:
        return 0, None
    return len(took) / (until - since), took[min(len(took) - 1, len(took) * 99 // 100)]


def longest_gap(answers, since, until, there=None):
    """When it began, and how many ms it took; nothing answered at the ends counts as well. Only of those that begin before
    `there`, if that is given."""
    times = [since, *(at for at, _ in answers if since <= at < until), until]
    gaps = [(after - before, before) for before, after in zip(times, times[1:])]
    took, began = max(gap for gap in gaps if there is None or gap[1] < there)
    return began, took * 1e3


def until_ready(subject, limit, every=0.05):
    """Whether it was within the limit."""
    end = time.monotonic() + limit
    while not subject.is_ready():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def switched(subject, figures):
    """Switches over; when it began and ended, and when the disk was in service at the target, if that can be told."""
    waiter = subject.waiter()
    began = time.time()
    subject.switch()
    ended = time.time()
    figures["pause, as it says, ms"] = subject.pause_ms()
    time.sleep(AFTER)
    return began, ended, waiter and float(waiter.communicate(timeout=60)[0])


def while_written(case, subject, line, words):
    """A move with a client."""
    figures = {}
    client = Client(subject, case.rate, words.size * MIB // 4)
    time.sleep(QUIET + 1)
    wire, began = line.wire(), time.time()
    subject.begin()
    ready = until_ready(subject, words.limit)
    until = time.time()
    figures["in step s"] = until - began if ready else None
    figures["wire MiB"] = (line.wire() - wire) / MIB
    if ready:
        time.sleep(words.in_step)
        switch = switched(subject, figures)
    else:
        client.stands()
        came = until_ready(subject, words.limit)
        figures["forced pause s"] = time.time() - until if came else None
    answers = client.ends()
    figures["writes/s before"], figures["p99 before ms"] = span_of(answers, began - QUIET, began)
    figures["writes/s"], figures["p99 ms"] = span_of(answers, began, until)
    if ready:
        figures["writes/s in step"], _ = span_of(answers, until, until + words.in_step)
        began, ended, there = switch
        _, figures["pause ms"] = longest_gap(answers, began - 0.5, ended + 1)
        if there:
            since, _ = longest_gap(answers, began - 0.5, ended + 1, there)
            figures[subject.in_service] = (there - since) * 1e3
    return figures


def move(subject, line, limit, at_half=None):
    """Without a client: seconds until it is in step (None: not within the limit) and bytes on the wire."""
    wire, began = line.wire(), time.monotonic()
    subject.begin()
    while time.monotonic() < began + limit:
        try:
            if subject.is_ready():
                return time.monotonic() - began, line.wire() - wire
            if at_half and subject.copied() >= at_half[0]:
                at_half[1]()
                at_half = None
        except Failed as failure:
            print(f"wan: it failed and begins again: {failure}", flush=True)
            subject.begin()
        time.sleep(0.05)
    return None, line.wire() - wire


def while_killed(case, subject, line, words):
    """The bytes that a move sends again when its target is killed, by another one that is left alone."""
    half = words.size * MIB // 4

    def kill():
        subject.there.kill()
        subject.there.wait()
        time.sleep(1)
        subject.receive()

    seconds, disturbed = move(subject, line, words.limit, (half, kill))
    subject.close()
    folder = subject.folder / "again"
    folder.mkdir()
    other = words.make[subject.name](line, folder)
    try:
        other.prepare(words.raw)
        alone, quiet = move(other, line, words.limit)
    finally:
        other.close()
    again = (disturbed - quiet) / MIB if seconds and alone else None
    return {"in step s": seconds, "in step s, not killed": alone, "sent again MiB": again}


def while_lost(case, subject, line, words):
    """The rate at which data arrives."""
    began = time.monotonic()
    seconds, wire = move(subject, line, words.limit)
    copied = words.size * MIB // 2 if seconds else subject.copied()
    seconds = seconds or time.monotonic() - began
    return {"Mbit/s": copied * 8 / 1e6 / seconds, "wire MiB": wire / MIB}


def processor(subject):
    """Seconds of the processor that the programs of both sites have had."""
    ticks = 0
    for process in subject.running:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def over_a_cable(case, subject, line, words):
    """How long it takes where the machine is the limit, and what it costs."""
    before = processor(subject)
    seconds, wire = move(subject, line, words.limit)
    gib = words.size / 1024 * (0.75 if case.text else 0.5)
    return {"in step s": seconds, "CPU s/GiB": (processor(subject) - before) / gib, "wire MiB": wire / MIB}


def within(figure, most):
    return (figure, f"<= {most:,}", lambda figures: figures[figure] <= most)


def at_least(figure, least):
    return (figure, f">= {least:,}", lambda figures: figures[figure] >= least)


FAR = ("--delay", "40ms")
NEVER_WAITS = (
    "p99 ms", "<= 1.5 x or 3 ms more",
    lambda figures: figures["p99 ms"] <= max(1.5 * figures["p99 before ms"], figures["p99 before ms"] + 3),
)  # fmt: skip
CASES = {
    "slow": Case(
        while_written,
        [within("in step s", 60), at_least("writes/s", 1950), NEVER_WAITS, within("wire MiB", 1300)],
        rate=2000,
    ),
    "far": Case(
        while_written,
        # One and a half times there and back, or half of one and a word with the arbiter; and 20 ms.
        [at_least("writes/s", 1950), within("pause of the disk ms", 140), within("pause of the disk, fast, ms", 60)],
        rate=2000,
        line=FAR,
    ),
    "busy": Case(
        while_written, [within("in step s", 85), within("pause, as it says, ms", 20)], terms=("--deadline", "85s")
    ),
    # A second of what the line carries.
    "killed": Case(while_killed, [within("sent again MiB", 24)], text=False, line=FAR),
    "lossy": Case(while_lost, [at_least("Mbit/s", 150)], text=False, line=(*FAR, "--loss", "0.1"), reno=True),
    "lan": Case(over_a_cable, [within("in step s", 5), within("CPU s/GiB", 1.5)], line=None),
}


class Ours(Diskferry):
    """With what the cases ask besides."""

    def copied(self):
        return self.status()["copied"]


class Fast(Ours):
    """The same, with a fast switchover that a directory of this machine decides: the arbiter is as near as can be."""

    in_service = "pause of the disk, fast, ms"

    def prepare(self, raw):
        arbiter = f"file:{self.folder}/third"
        self.folder.joinpath("third").mkdir()
        self.run("arbiter", "new", arbiter)
        self.receives = ("--arbiter", arbiter)
        self.terms = ("--switchover", "fast", "--arbiter", arbiter)
        super().prepare(raw)


FAST = "diskferry, fast"


def subjects(words):
    """Who is measured: by name, how to make it."""
    made = {}
    for number, program in enumerate([words.diskferry, *words.against]):
        name = "diskferry" if number == 0 else f"diskferry, {program}"
        made[name] = lambda sites, folder, program=program: Ours(program, sites, folder)
    made[FAST] = lambda sites, folder: Fast(words.diskferry, sites, folder)
    for mode in words.qemu:
        made[f"QEMU, {mode}"] = lambda sites, folder, mode=mode: Qemu(mode, sites, folder)
    return made


def arguments():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--diskferry", required=True, type=Path)
    words.add_argument("--link", required=True, type=Path, help="testlink")
    words.add_argument("--directory", required=True, type=Path, help="where the disks go")
    words.add_argument("--json", type=Path, help="all figures, as JSON")
    words.add_argument("--only", action="append", choices=list(CASES), help="a case; may be given several times")
    words.add_argument("--rounds", type=int, default=1)
    words.add_argument("--size", type=int, default=2048, help="of the disk, in MiB, a multiple of 32; what is asked is for 2048")
    words.add_argument("--limit", type=float, default=120, help="seconds within which a mirror has to be in step")
    words.add_argument("--in-step", type=float, default=4, help="seconds in step before the switchover")
    words.add_argument("--against", action="append", default=[], type=Path, help="another build; may be given several times")
    words.add_argument(
        "--qemu", nargs="*", default=["write-blocking", "background"], help="its copy modes that are measured, or none"
    )
    words.add_argument("--encrypted", action="store_true", help="ours moves by TLS, and so do its clients afterwards")
    return words.parse_args()


def measured(name, words, place):
    """One subject's figures in one case, from nothing."""
    case = CASES[words.case]
    line = Cable() if case.line is None else Line(words.link, case)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        subject = words.make[name](line, Path(folder))
        subject.name = name
        if type(subject) is Ours and "--deadline" in subject.run("mirror", "start", "--help"):
            subject.terms = case.terms
        try:
            subject.prepare(words.raw)
            return case.measure(case, subject, line, words)
        finally:
            subject.close()
            line.close()


def shown(value):
    return "-" if value is None else f"{value:,.4g}"


def table(case, samples):
    """Prints a case's figures beside what is asked."""
    print(f"\n| {case} | asked | {' | '.join(samples)} |\n|---|---|{'---:|' * len(samples)}")
    medians = {}
    for name, rounds in samples.items():
        figures = {figure: [sample.get(figure) for sample in rounds] for figure in rounds[0]}
        medians[name] = {
            figure: None if None in values else statistics.median(values) for figure, values in figures.items()
        }
    asked = {figure: (text, met) for figure, text, met in CASES[case].asked}
    for figure in dict.fromkeys(figure for figures in medians.values() for figure in figures):
        text, met = asked.get(figure, ("", None))
        cells = []
        for figures in medians.values():
            verdict = ""
            if met and figure in figures:
                # A figure of a mirror that never got there is worth nothing, however good.
                there = figures.get(figure) is not None and figures.get("in step s", 0) is not None
                verdict = ", met" if there and met(figures) else ", missed"
            cells.append(shown(figures.get(figure)) + verdict)
        print(f"| {figure} | {text} | {' | '.join(cells)} |", flush=True)


def main():
    words = arguments()
    Diskferry.encrypted = words.encrypted
    words.make = subjects(words)
    everything = {}
    with tempfile.TemporaryDirectory(dir=words.directory.resolve()) as place:
        for words.case in words.only or CASES:
            words.raw = Path(place) / "raw"
            image(words.raw, words.size * MIB, CASES[words.case].text)
            # How it switches over shows where the line is far.
            names = [name for name in words.make if name != FAST or words.case == "far"]
            samples = everything[words.case] = {name: [] for name in names}
            for turn in range(words.rounds):
                for name in names:
                    print(f"wan: {words.case}, round {turn + 1} of {words.rounds}, {name}", flush=True)
                    samples[name].append(measured(name, words, place))
                    print(f"wan: {json.dumps(samples[name][-1])}", flush=True)
            table(words.case, samples)
            if words.json:
                words.json.write_text(json.dumps(everything, indent=1))


main()
