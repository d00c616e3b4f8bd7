"""What a disk costs by its size: opening, looking at and checking one, overwriting, making it compact."""

import os
import struct
import time

from measure import Server, load, run
from subjects import QEMU

MIB = 1 << 20
TIB = 1 << 40
ALLOCATED = 8 << 20


def large_image(diskferry, path):
    """A 64 TB disk in blocks of 1 MB of which 8 million are there, as holes of its file."""
    run([diskferry, "create", path, "64T", "--block-size", "1M"])
    with open(path, "r+b") as file:
        bat_at, _ = bat_of(file)
        first = (file.seek(0, os.SEEK_END) + MIB - 1) // MIB
        ratio = (1 << 23) * 512 // MIB
        file.truncate((first + ALLOCATED) * MIB)
        for chunk in range(ALLOCATED // ratio):
            entries = ((first + chunk * ratio + n) << 20 | 6 for n in range(ratio))
            file.seek(bat_at + chunk * (ratio + 1) * 8)
            file.write(struct.pack(f"<{ratio}Q", *entries))
        os.fsync(file.fileno())


def bat_of(file):
    """Offset and length of the table of blocks."""
    bat = bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
    file.seek(3 * 65536)
    table = file.read(65536)
    at = table.index(bat)
    return struct.unpack_from("<QI", table, at + 16)


def large(diskferry, place, rounds, _scale):
    """Opening, looking at and checking a large disk, by us and by qemu."""
    path = os.path.join(place, "large.vhdx")
    large_image(diskferry, path)
    socket = os.path.join(place, "s.sock")
    servers = {
        "diskferry": [diskferry, "serve", "--quiet", "--listen", f"unix:{socket}", path],
        "qemu-nbd": ["qemu-nbd", *QEMU, "--format", "vhdx", "--socket", socket, path],
    }
    commands = {
        "info": {
            "diskferry": [diskferry, "info", path],
            "qemu-img": ["qemu-img", "info", path],
        },
        "check": {
            "diskferry": [diskferry, "check", path],
            "qemu-img": ["qemu-img", "check", path],
        },
    }
    cells = {}
    for turn in range(rounds):
        for name, command in servers.items():
            server = Server(command, socket)
            sample = {"ms": server.started * 1000, "memory_kib": server.memory_peak()}
            # The first write makes the search for what is taken begin.
            options = {"rw": "randwrite", "bs": "4k", "iodepth": 1, "number_ios": 8, "size": "1T"}
            load(server, **options, randseed=turn + 1)
            sample["memory_used_kib"] = server.memory_peak()
            sample["close_ms"] = server.stop() * 1000
            cells.setdefault("64T, 8 million blocks: open", {}).setdefault(name, []).append(sample)
        for what, programs in commands.items():
            for name, command in programs.items():
                seconds, memory, cpu = run(command)
                sample = {"ms": seconds * 1000, "cpu_ms": cpu * 1000, "memory_kib": memory}
                cell = cells.setdefault(f"64T, 8 million blocks: {what}", {})
                cell.setdefault(name, []).append(sample)
    os.unlink(path)
    return cells


SIZES = [("1G", 1 << 30), ("64G", 64 << 30), ("1T", TIB), ("16T", 16 * TIB), ("64T", 64 * TIB)]


def sizes(diskferry, place, rounds, scale):
    """4 KiB overwrites at random among 1000 blocks of disks of each size, whose table fits the cache; and
    of 64 TB among 60,000 of which each has a page of the table to itself, almost four times what fits."""
    socket = os.path.join(place, "s.sock")
    plan = [(name, size, 1000) for name, size in SIZES] + [("64T, cache missed", 64 * TIB, 60_000)]
    images = {}
    for number, (name, size, blocks) in enumerate(plan):
        path = images[name] = os.path.join(place, f"size{number}.vhdx")
        run([diskferry, "create", path, str(size), "--block-size", "1M"])
        # Each place once: a random map without repetition.
        places = {"size": size, "blockalign": size // blocks // 4096 * 4096}
        server = serve(diskferry, path, socket)
        load(server, **places, rw="randwrite", bs="4k", iodepth=32, number_ios=blocks)
        server.stop()
    cells = {}
    count = max(2000, int(30_000 * scale))
    for turn in range(rounds):
        for name, size, blocks in plan:
            server = serve(diskferry, images[name], socket)
            places = {"size": size, "blockalign": size // blocks // 4096 * 4096, "norandommap": 1}
            options = {"rw": "randwrite", "bs": "4k", "iodepth": 32}
            # What opens a session, and fills the cache as far as it goes.
            load(server, **places, **options, randseed=100 + turn, number_ios=max(4000, blocks))
            before = quiet(server)
            sample = load(server, **places, **options, randseed=turn, number_ios=count)
            sample["read_bytes"] = (server.read_bytes() - before) / count
            server.stop()
            cells.setdefault("overwrites by size", {}).setdefault(name, []).append(sample)
    for path in images.values():
        os.unlink(path)
    return cells


def quiet(server):
    """Wait until the search for what is taken has ended; bytes that were read by then."""
    last = -1
    while last != (last := server.read_bytes()):
        time.sleep(0.3)
    return last


def serve(diskferry, path, socket):
    """Our server of one image."""
    return Server([diskferry, "serve", "--quiet", "--listen", f"unix:{socket}", path], socket)


def compaction(diskferry, place, rounds, scale):
    """Making a disk compact of whose blocks every other one was given back, against copying as much."""
    path = os.path.join(place, "sparse.vhdx")
    blocks = max(64, int(1024 * scale))
    copied = os.path.join(place, "copied")
    cells = {}
    for _ in range(rounds):
        half_empty(diskferry, path, place, blocks)
        # Only the upper half of what is left has to move.
        moved = blocks // 4 * MIB
        with open(copied, "w+b") as file:
            dense(file, moved)
            cold(file)
        seconds, _, cpu = run(["cp", "--sparse=auto", "--reflink=never", copied, copied + ".2"])
        took = seconds + run(["sync", copied + ".2"])[0]
        cell = cells.setdefault("moving blocks", {})
        sample = {"mib_s": moved / MIB / took, "cpu_ms": cpu * 1000}
        cell.setdefault("cp, sync", []).append(sample)
        os.unlink(copied)
        os.unlink(copied + ".2")
        length = os.path.getsize(path)
        with open(path, "rb") as file:
            cold(file)
        seconds, _, cpu = run([diskferry, "compact", path])
        sample = {"mib_s": moved / MIB / seconds, "cpu_ms": cpu * 1000}
        sample["shorter"] = os.path.getsize(path) / length
        cell.setdefault("diskferry compact", []).append(sample)
        os.unlink(path)
    return cells


def cold(file):
    """Have the kernel forget what it has of a file, so that all read it from the medium."""
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def dense(file, size):
    """A file of so many random bytes."""
    file.truncate(size)
    for _ in range(size // MIB):
        file.write(os.urandom(MIB))
    os.fsync(file.fileno())


def half_empty(diskferry, path, place, blocks):
    """A disk of so many blocks in full, every other one given back."""
    socket = os.path.join(place, "s.sock")
    run([diskferry, "create", path, str(64 << 30), "--block-size", "1M"])
    server = serve(diskferry, path, socket)
    load(server, rw="write", bs="1M", iodepth=8, size=blocks * MIB, number_ios=blocks, refill_buffers=1)
    trims = [word for block in range(0, blocks, 2) for word in ("-c", f"discard {block}M 1M")]
    run(["qemu-io", "-f", "raw", *trims, server.uri()])
    server.stop()
