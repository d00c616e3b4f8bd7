"""What a machine costs: its start, its memory, and its guest's reads and writes, against bare io_uring and qemu."""

import json
import os
import subprocess
import sys

from guests import MEMORY, guest_elf, ours, qemu, qemu_system
from measure import Failed, run
from snapshots import snapshots

GIB = 1 << 30
# The disk in full: what is read is there, and what is written has its place.
SIZE = GIB
DEPTH = 32

# Makes with KVM what a machine of ours asks KVM for (interrupt controllers, timer, memory, one processor) and
# prints the milliseconds. An interpreter of its own, so that nothing is there already.
KVM_ALONE = """
import ctypes, fcntl, mmap, os, struct, sys, time
memory = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
began = time.perf_counter()
kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
machine = fcntl.ioctl(kvm, 0xAE01, 0)
fcntl.ioctl(machine, 0x4008AE48, struct.pack("<Q", 0xFFFBC000))
libc.ioctl(machine, ctypes.c_ulong(0xAE47), ctypes.c_ulong(0xFFFBD000))
fcntl.ioctl(machine, 0xAE60)
fcntl.ioctl(machine, 0x4040AE77, struct.pack("<16I", *[1] + [0] * 15))
file = os.memfd_create("memory")
os.ftruncate(file, memory)
address = libc.mmap(None, memory, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
fcntl.ioctl(machine, 0x4020AE46, struct.pack("<IIQQQ", 0, 0, 0, memory, address))
processor = fcntl.ioctl(machine, 0xAE41, 0)
page = mmap.mmap(processor, fcntl.ioctl(kvm, 0xAE04), mmap.MAP_SHARED)
print((time.perf_counter() - began) * 1000)
"""


def kvm_alone():
    """Milliseconds that KVM takes to make a machine of one processor, with nothing around it."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", KVM_ALONE, str(MEMORY)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"KVM alone: {done.stderr.strip()}")
    return float(done.stdout)


def starts(diskferry, place, rounds, images):
    """From the start of the process to the first byte that the guest says, and the memory besides the guest's."""
    cell = {}
    waits = "do=hello do=spin every=50M rounds=0"
    elf, emulator = guest_elf(diskferry), qemu_system()
    subjects = {
        "diskferry": lambda: ours(diskferry, place, waits),
        "diskferry, with a VHDX": lambda: ours(diskferry, place, waits, images["diskferry, VHDX"]),
    }
    if elf and emulator:
        subjects["qemu, with a raw disk"] = lambda: qemu(emulator, elf, waits, images["qemu, raw"])
    for turn in range(rounds):
        for name, start in subjects.items():
            # Its firmware takes seconds where KVM emulates ring 0: once is enough.
            if name.startswith("qemu") and turn > 0:
                continue
            kvm = kvm_alone()
            cell.setdefault("KVM alone", []).append({"ms": kvm})
            guest = start()
            try:
                sample = {"ms": guest.first_byte()}
                sample["besides_ms"] = sample["ms"] - kvm
                guest.until("spin")
                sample["memory_kib"], sample["own_kib"] = guest.overhead_kib()
            finally:
                guest.close()
            cell.setdefault(name, []).append(sample)
    return cell


def bare(path, kind, count, seed):
    """Reads or writes by io_uring with nothing between: fio, past the page cache, without its clocks."""
    command = [
        "fio", "--name=bare", "--ioengine=io_uring", f"--filename={path}", "--direct=1", f"--rw={kind}", "--bs=4k",
        f"--iodepth={DEPTH}", f"--number_ios={count}", f"--size={SIZE}", "--norandommap", f"--randseed={seed}",
        "--gtod_reduce=1", "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    start = done.stdout.find("{")
    if done.returncode != 0 or start < 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    job = json.loads(done.stdout[start:])["jobs"][0]
    side = job["read" if kind == "randread" else "write"]
    seconds = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
    return {"iops": side["iops"], "cpu_us": seconds * 1e6 / side["total_ios"]}


def words(count, seed):
    """What the guest does: warms up, then reads, then writes, and waits a moment between them."""
    rest = "do=spin every=200M rounds=1"
    load = f"do=load depth={DEPTH} length={SIZE} seed={seed}"
    warm = f"{load} ops={max(500, count // 20)} write=50"
    return f"{warm} {rest} {load} ops={count} {rest} {load} ops={count} write=100 {rest}"


def ticks_in_ms(diskferry, place):
    """Ticks of a guest's time stamp counter in a millisecond, on this host."""
    guest = ours(diskferry, place, "do=hello")
    try:
        guest.end()
        return guest.ticks_in_ms()
    finally:
        guest.close()


def guest_load(guest, khz):
    """Both loads of a guest: its figures by kind, and the memory of the process besides the guest's."""
    figures = {}
    guest.until("load")
    for kind in ("randread", "randwrite"):
        guest.until("spin")
        before = guest.cpu()
        said = guest.until("load")
        workers, processors = (after - b for after, b in zip(guest.cpu(), before))
        done = said["reads"] + said["writes"]
        us = 1000 / khz
        figures[kind] = {
            "iops": done * 1e6 / (said["ticks"] * us),
            "cpu_us": (workers + processors) * 1e6 / done,
            "exits_us": processors * 1e6 / done,
            "p50_us": said["p50"] * us,
            "p99_us": said["p99"] * us,
        }
        figures[kind]["memory_kib"], figures[kind]["own_kib"] = guest.overhead_kib()
    guest.end()
    return figures


def disks(diskferry, place):
    """Disks with the same random bytes in full: path and format by subject. The bare one's is raw as well."""
    raw = os.path.join(place, "bare.raw")
    with open(raw, "wb") as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    made = {"bare": (raw, "raw"), "diskferry, raw": (raw, "raw"), "qemu, raw": (raw, "raw")}
    for name, command in {
        "diskferry, VHDX": [diskferry, "create", "--format", "vhdx", "--block-size", "1M"],
        "qemu, VHDX": ["qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M"],
    }.items():
        path = os.path.join(place, f"{name.replace(', ', '-')}.vhdx")
        run([*command, path, str(SIZE)])
        run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "vhdx", raw, path])
        made[name] = (path, "vhdx")
    return made


def machines(diskferry, place, rounds, scale):
    """A machine's start, its snapshots and its guest's 4 KiB reads and writes at random, 32 at a time. Nothing where there is no KVM."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("compare: /dev/kvm cannot be used: without machines", file=sys.stderr)
        return {}
    images = disks(diskferry, place)
    cells = {"start of a machine, 512M": starts(diskferry, place, rounds, images)}
    cells |= snapshots(diskferry, place, rounds, kvm_alone)
    elf, emulator = guest_elf(diskferry), qemu_system()
    if not (elf and emulator):
        print("compare: no qemu-system-x86_64, or no guest.elf: without qemu", file=sys.stderr)
    count = max(2000, int(150_000 * scale))
    titles = {"randread": "guest's random reads, 1G in full", "randwrite": "guest's random overwrites, 1G in full"}
    khz = ticks_in_ms(diskferry, place)
    for turn in range(rounds):
        print(f"compare: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        seed = turn + 1
        for kind, title in titles.items():
            sample = bare(images["bare"][0], kind, count, seed)
            cells.setdefault(title, {}).setdefault("bare io_uring", []).append(sample)
        for name, disk in images.items():
            program = name.partition(",")[0]
            if program == "bare" or (program == "qemu" and not (elf and emulator)):
                continue
            told = words(count, seed)
            guest = ours(diskferry, place, told, disk) if program == "diskferry" else qemu(emulator, elf, told, disk)
            try:
                figures = guest_load(guest, khz)
            finally:
                guest.close()
            for kind, title in titles.items():
                cells[title].setdefault(name, []).append(figures[kind])
    for path in {path for path, _ in images.values()}:
        os.unlink(path)
    return cells
