"""Compare diskferry with its peers: creation, allocating writes, reads, machines. Prints a table, and JSON.

    python3 benches/compare --diskferry target/release/diskferry --directory DIR

Every figure is a median over rounds; in each round all subjects take their turn, so that what else
the machine does hits them alike. Images are made in a folder of their own inside DIR and removed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from conversions import conversion, tracking
from images import compaction, large, sizes
from machines import machines
from measure import Failed, disk_use, flushing_load, load, run, syscalls
from subjects import subjects

GIB = 1 << 30
READ_SIZE = GIB


def flush_floor(place):
    """Milliseconds that the file system takes for what makes a small new file durable.

    Two writes, each flushed, a rename, the folder flushed: what is left of a creation when nothing
    is computed. Where this is long the machine is busy, or its disk slow.
    """
    path = os.path.join(place, "floor")
    began = time.perf_counter()
    with open(path + ".partial", "xb", buffering=0) as file:
        for at in (65536, 0):
            os.pwrite(file.fileno(), bytes(4096), at)
            os.fdatasync(file.fileno())
    os.rename(path + ".partial", path)
    folder = os.open(place, os.O_RDONLY)
    os.fsync(folder)
    took = time.perf_counter() - began
    os.close(folder)
    os.unlink(path)
    return took * 1000


def creation(diskferry, place, rounds, _scale):
    """Seconds, disk use and memory of making empty disks."""
    cells = {}
    for turn in range(rounds):
        note(f"round {turn + 1} of {rounds}")
        settle(place)
        floor = cells.setdefault("floor: a small file made durable", {"the file system": []})
        floor["the file system"].append({"ms": flush_floor(place)})
        for size in ("16T", "64T"):
            for block in ("1M", "32M", "256M"):
                path = os.path.join(place, "new.vhdx")
                commands = {
                    "diskferry": [diskferry, "create", path, size, "--block-size", block],
                    "qemu-img": ["qemu-img", "create", "-q", "-f", "vhdx",
                                 "-o", f"block_size={block}", path, size],
                }  # fmt: skip
                for program, command in commands.items():
                    settle(place)
                    seconds, memory, cpu = run(command)
                    cell = cells.setdefault(f"create {size}, {block} blocks", {})
                    figures = {
                        "ms": seconds * 1000,
                        "cpu_ms": cpu * 1000,
                        "disk_kib": disk_use(path) / 1024,
                        "memory_kib": memory,
                    }
                    cell.setdefault(program, []).append(figures)
                    os.unlink(path)
    return cells


def allocating_writes(diskferry, place, rounds, scale):
    """4 KiB random writes to fresh disks, 32 at a time, with a flush every 32 writes and without."""
    known = subjects(diskferry)
    # The slow ones get fewer writes: rates are compared, and all are far from the end of the disk.
    counts = {"diskferry-vhdx": 12000, "diskferry-raw": 12000, "qemu-qcow2": 4000, "qemu-vhdx": 300}
    ours = {name: 12000 for name in ("diskferry-vhdx", "diskferry-vhdx-32M", "diskferry-raw")}
    plan = [
        ("64G, flush every 32", 64 * GIB, counts, True),
        ("64G, no flush", 64 * GIB, counts, False),
        ("15T, flush every 32", 15 * 1024 * GIB, ours, True),
        ("15T, no flush", 15 * 1024 * GIB, ours, False),
    ]
    cells = {}
    for turn in range(rounds):
        note(f"round {turn + 1} of {rounds}")
        for title, size, who, flush in plan:
            cell = cells.setdefault(f"allocating writes, {title}", {})
            for name, count in who.items():
                subject = known[name]
                path = subject.create(place, size)
                settle(place)
                server = subject.start(path, place)
                try:
                    ops = max(64, int(count * scale))
                    if flush:
                        figures = flushing_load(server, diskferry, ops, turn + 1)
                    else:
                        options = {"rw": "randwrite", "bs": "4k", "iodepth": 32, "number_ios": ops}
                        figures = load(server, **options, randseed=turn + 1)
                finally:
                    stopped = server.stop()
                figures["close_ms"] = stopped * 1000
                figures["disk_kib"] = disk_use(path) / 1024
                cell.setdefault(name, []).append(figures)
                os.unlink(path)
    return cells


def streams(diskferry, place, rounds, scale):
    """1 MiB sequential writes to fresh disks, 8 at a time."""
    known = subjects(diskferry)
    count = max(64, int(1024 * scale))
    cell = {}
    for turn in range(rounds):
        note(f"round {turn + 1} of {rounds}")
        for name in ("diskferry-vhdx", "diskferry-raw", "qemu-vhdx"):
            path = known[name].create(place, 64 * GIB)
            settle(place)
            server = known[name].start(path, place)
            try:
                options = {"rw": "write", "bs": "1M", "iodepth": 8, "number_ios": count}
                figures = load(server, **options, size="64G")
            finally:
                server.stop()
            cell.setdefault(name, []).append(figures)
            os.unlink(path)
    return {"sequential allocating writes, 1 MiB": cell}


def reads(diskferry, place, rounds, scale):
    """4 KiB random reads and overwrites, 32 at a time, past the page cache, of disks written in full."""
    known = subjects(diskferry)
    raw = os.path.join(place, "full.raw")
    with open(raw, "wb") as file:
        for _ in range(READ_SIZE >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    images = {"diskferry-raw": raw, "qemu-raw": raw}
    for name in ("diskferry-vhdx", "qemu-vhdx"):
        images[name] = os.path.join(place, f"{name}.img")
        known[name].make(images[name], READ_SIZE)
        run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "vhdx", raw, images[name]])
    count = max(1000, int(100_000 * scale))
    cells = {}
    for turn in range(rounds):
        note(f"round {turn + 1} of {rounds}")
        for what, kind in (("random reads", "randread"), ("random overwrites", "randwrite")):
            options = {"rw": kind, "bs": "4k", "iodepth": 32, "number_ios": count}
            for name, path in images.items():
                settle(place)
                server = known[name].start(path, place)
                try:
                    # The first change opens a session, which is no part of what an overwrite takes.
                    load(server, **options | {"number_ios": 64})
                    figures = load(server, **options, randseed=turn + 1)
                    if turn == 0 and kind == "randread":
                        figures["syscalls"] = syscalls(server, **options)
                finally:
                    server.stop()
                cells.setdefault(f"{what}, 1G in full", {}).setdefault(name, []).append(figures)
    for path in set(images.values()):
        os.unlink(path)
    return cells


def note(what):
    """Say on stderr how far it is."""
    print(f"compare: {what}", file=sys.stderr, flush=True)


def settle(place):
    """Let the file system finish what the last subject left it to do."""
    folder = os.open(place, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    time.sleep(0.1)


def medians(samples):
    """The median of each figure, and how far its samples lie apart."""
    result = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples if sample.get(key) is not None]
        if values:
            middle = statistics.median(values)
            spread = (max(values) - min(values)) / middle if middle else 0
            result[key] = {"median": middle, "spread": spread, "samples": len(values)}
    return result


# What is asked: title, cell, figure, subject, compared with (or nothing), at least or at most, value.
TARGETS = [
    *[
        (f"{cell}: {name}", cell, figure, "diskferry", None, "<=", limit)
        for size in ("16T", "64T")
        for block in ("1M", "32M", "256M")
        for cell in [f"create {size}, {block} blocks"]
        for name, figure, limit in (
            ("ms", "ms", 20), ("KiB on disk", "disk_kib", 2048), ("KiB of memory", "memory_kib", 16384),
        )
    ],
    *[
        (f"{cell}: {name}", cell, figure, "diskferry-vhdx", other, sense, limit)
        for flush in ("flush every 32", "no flush")
        for cell in [f"allocating writes, 64G, {flush}"]
        for name, figure, other, sense, limit in (
            ("IOPS to our raw", "iops", "diskferry-raw", ">=", 0.9),
            ("IOPS to qemu's VHDX", "iops", "qemu-vhdx", ">=", 20),
            ("CPU to qcow2", "cpu_us", "qemu-qcow2", "<=", 0.5),
        )
    ],
    *[
        (f"{cell}, {block}: IOPS to our raw", cell, "iops", subject, "diskferry-raw", ">=", limit)
        for flush in ("flush every 32", "no flush")
        for cell in [f"allocating writes, 15T, {flush}"]
        for block, subject, limit in (("1M", "diskferry-vhdx", 0.5), ("32M", "diskferry-vhdx-32M", 0.9))
    ],
    ("sequential allocating writes: IOPS to our raw", "sequential allocating writes, 1 MiB", "iops",
     "diskferry-vhdx", "diskferry-raw", ">=", 0.9),
    *[
        (f"{what}: CPU, VHDX, to our raw", f"{what}, 1G in full", "cpu_us",
         "diskferry-vhdx", "diskferry-raw", "<=", 1.05)
        for what in ("random reads", "random overwrites")
    ],
    *[
        (f"64T, 8 million blocks: {what}", f"64T, 8 million blocks: {part}", figure, "diskferry", None, "<=", limit)
        for what, part, figure, limit in (
            ("open, ms", "open", "ms", 50), ("open, KiB of memory", "open", "memory_kib", 80 << 10),
            ("in use, KiB of memory", "open", "memory_used_kib", 80 << 10),
            ("check, ms", "check", "ms", 2000), ("info, ms", "info", "ms", 10),
        )
    ],
    ("moving blocks: MiB/s to cp", "moving blocks", "mib_s", "diskferry compact", "cp, sync", ">=", 0.7),
    ("random reads: CPU, raw, to qemu", "random reads, 1G in full", "cpu_us",
     "diskferry-raw", "qemu-raw", "<=", 0.6),
    ("random reads: CPU, VHDX, to qemu's raw", "random reads, 1G in full", "cpu_us",
     "diskferry-vhdx", "qemu-raw", "<=", 0.6),
    ("start of a machine, 512M: ms besides KVM's own", "start of a machine, 512M", "besides_ms",
     "diskferry, with a VHDX", None, "<=", 30),
    ("start of a machine, 512M: KiB besides the guest's", "start of a machine, 512M", "memory_kib",
     "diskferry, with a VHDX", None, "<=", 8192),
    ("guest's random reads: KiB besides the guest's", "guest's random reads, 1G in full", "memory_kib",
     "diskferry, VHDX", None, "<=", 8192),
    ("snapshot of a machine: MiB/s to the disk's own", "snapshot of a machine, 1G in use", "mib_s",
     "diskferry", "the disk, by fio", ">=", 0.9),
    ("restore of a machine: ms besides KVM's own", "restore of a machine, 1G in use", "besides_ms",
     "diskferry", None, "<=", 50),
    *[
        (f"guest's {what}: {name} to bare io_uring", f"guest's {what}, 1G in full", figure,
         "diskferry, VHDX", "bare io_uring", sense, limit)
        for what in ("random reads", "random overwrites")
        for name, figure, sense, limit in (("CPU", "cpu_us", "<=", 1.5), ("IOPS", "iops", ">=", 0.9))
    ],
]  # fmt: skip


def judge(cells):
    """Each target that was measured, with its figure; a ratio is the median of each round's ratio."""
    verdicts = []
    for title, cell, figure, subject, other, sense, limit in TARGETS:
        mine = [sample[figure] for sample in cells.get(cell, {}).get(subject, [])]
        if not mine:
            continue
        if other:
            theirs = [sample[figure] for sample in cells[cell][other]]
            mine = [a / b for a, b in zip(mine, theirs)]
        value = statistics.median(mine)
        met = value >= limit if sense == ">=" else value <= limit
        verdicts.append({"target": title, "value": value, "asked": f"{sense} {limit}", "met": met})
    return verdicts


def machine(place):
    """What the figures were measured on."""

    def said(*command):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    model = [line.split(":")[1] for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processors": os.cpu_count(),
        "model": model[0].strip() if model else platform.machine(),
        "kernel": platform.release(),
        "file_system": said("findmnt", "-no", "FSTYPE,OPTIONS", "--target", place),
        "fio": said("fio", "--version"),
        "qemu": said("qemu-nbd", "--version").splitlines()[0],
        "load_average": os.getloadavg(),
    }


UNITS = [
    ("ms", "ms"), ("besides_ms", "besides KVM ms"), ("cpu_ms", "CPU ms"), ("iops", "IOPS"), ("p50_us", "p50 us"),
    ("p99_us", "p99 us"), ("flush_p50_us", "flush p50 us"), ("cpu_us", "CPU us/op"), ("exits_us", "exits us/op"),
    ("syscalls", "syscalls/op"), ("memory_kib", "memory KiB"), ("own_kib", "own KiB"),
    ("memory_used_kib", "in use KiB"), ("disk_kib", "disk KiB"), ("close_ms", "close ms"),
    ("read_bytes", "bytes read/op"), ("mib_s", "MiB/s"), ("shorter", "length left"),
]  # fmt: skip


def number(value):
    """A figure as people read it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(report):
    """The whole report as Markdown."""
    lines = []
    columns = [
        (key, title)
        for key, title in UNITS
        if any(key in row for cell in report["cells"].values() for row in cell.values())
    ]
    lines.append("| what | subject | " + " | ".join(title for _, title in columns) + " | spread |")
    lines.append("|---|---|" + "---:|" * (len(columns) + 1))
    for what, cell in report["cells"].items():
        for subject, row in cell.items():
            figures = [number(row[key]["median"]) if key in row else "" for key, _ in columns]
            spread = row.get("iops", row.get("ms", row.get("mib_s")))["spread"]
            lines.append(f"| {what} | {subject} | " + " | ".join(figures) + f" | {spread:.0%} |")
    lines += ["", "| target | measured | asked | |", "|---|---:|---:|---|"]
    for verdict in report["targets"]:
        met = "met" if verdict["met"] else "**missed**"
        lines.append(f"| {verdict['target']} | {number(verdict['value'])} | {verdict['asked']} | {met} |")
    return "\n".join(lines)


PARTS = {
    "create": creation,
    "writes": allocating_writes,
    "streams": streams,
    "reads": reads,
    "large": large,
    "sizes": sizes,
    "compact": compaction,
    "track": tracking,
    "convert": conversion,
    "machine": machines,
}


def main():
    """Measure what was asked for and report it; 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="compare", description=__doc__.splitlines()[0])
    parser.add_argument("--diskferry", default="target/release/diskferry", help="the program")
    parser.add_argument("--directory", default=".", help="where images are made; about 4 GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="operations a measurement, relative")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part")
    parser.add_argument("--json", metavar="FILE", help="write the report there too")
    arguments = parser.parse_args()
    cells = {}
    with tempfile.TemporaryDirectory(prefix="compare-", dir=os.path.abspath(arguments.directory)) as place:
        about = machine(place)
        for name in arguments.only or PARTS:
            note(name)
            program = os.path.abspath(arguments.diskferry)
            cells |= PARTS[name](program, place, arguments.rounds, arguments.scale)
    about["load_average_after"] = os.getloadavg()
    report = {
        "schema": "diskferry/compare/1",
        "machine": about,
        "rounds": arguments.rounds,
        "cells": {
            what: {name: medians(samples) for name, samples in cell.items()}
            for what, cell in cells.items()
        },
        "targets": judge(cells),
    }
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    print(json.dumps(about, indent=1))
    print(table(report))
    return 0 if all(verdict["met"] for verdict in report["targets"]) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"compare: {failure}")
