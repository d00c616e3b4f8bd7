"""What it costs to note changes, and how fast disks are converted."""

import os

from images import MIB, cold, dense, serve
from measure import load, run

GIB = 1 << 30


def tracking(diskferry, place, rounds, scale):
    """Overwrites of a disk in full, and allocating writes to a fresh one, with tracking and without."""
    count = max(1000, int(60_000 * scale))
    paths = {}
    for name in ("not tracked", "tracked"):
        paths[name] = os.path.join(place, name.replace(" ", "-") + ".vhdx")
        filled(diskferry, paths[name], place)
        if name == "tracked":
            run([diskferry, "track", "on", paths[name]])
    cells = {}
    for turn in range(rounds):
        for name, path in paths.items():
            options = {"rw": "randwrite", "bs": "4k", "iodepth": 32}
            figures = under_load(diskferry, path, place, options | {"number_ios": count}, turn)
            cells.setdefault("overwrites, 1G in full", {}).setdefault(name, []).append(figures)
            fresh = os.path.join(place, "fresh.vhdx")
            run([diskferry, "create", fresh, "64G", "--block-size", "1M"])
            if name == "tracked":
                run([diskferry, "track", "on", fresh])
            figures = under_load(diskferry, fresh, place, options | {"number_ios": count // 5}, turn)
            cells.setdefault("new blocks, 64G", {}).setdefault(name, []).append(figures)
            os.unlink(fresh)
    for path in paths.values():
        os.unlink(path)
    return cells


def filled(diskferry, path, place):
    """A disk of 1 GiB with every block written."""
    run([diskferry, "create", path, "1G", "--block-size", "1M"])
    server = serve(diskferry, path, os.path.join(place, "s.sock"))
    try:
        load(server, rw="write", bs="1M", iodepth=8, size=GIB, number_ios=1024)
    finally:
        server.stop()


def under_load(diskferry, path, place, options, turn):
    """One load on a disk that is served for it; the first writes, which open a session, do not count."""
    server = serve(diskferry, path, os.path.join(place, "s.sock"))
    try:
        load(server, **options | {"number_ios": 64})
        return load(server, **options, randseed=turn + 1)
    finally:
        server.stop()


def conversion(diskferry, place, rounds, scale):
    """Disks of which every other 16 MiB are random, the rest zeros, made into VHDX and durable."""
    size = max(64, int(1024 * scale)) * MIB
    raw = os.path.join(place, "source.raw")
    with open(raw, "w+b") as file:
        dense(file, size)
        for at in range(0, size, 32 * MIB):
            file.seek(at)
            file.write(bytes(16 * MIB))
        os.fsync(file.fileno())
    sources = {"raw": raw}
    for name in ("qcow2", "vhdx", "vmdk", "vpc"):
        sources[name] = os.path.join(place, f"source.{name}")
        run(["qemu-img", "convert", "-f", "raw", "-O", name, raw, sources[name]])
    target = os.path.join(place, "target.vhdx")
    cells = {}
    for _ in range(rounds):
        for name, path in sources.items():
            ours = "vhd" if name == "vpc" else name
            commands = {
                "diskferry": [diskferry, "convert", "--quiet", "--from", ours, path, target],
                "qemu-img": ["qemu-img", "convert", "-m", "8", "-W", "-f", name, "-O", "vhdx", path, target],
            }
            for program, command in commands.items():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    cold(file)
                seconds, memory, cpu = run(command)
                took = seconds + run(["sync", target])[0]
                sample = {"mib_s": size / MIB / took, "cpu_ms": cpu * 1000, "memory_kib": memory}
                cells.setdefault(f"{ours} to vhdx", {}).setdefault(program, []).append(sample)
                os.unlink(target)
    for path in sources.values():
        os.unlink(path)
    return cells
