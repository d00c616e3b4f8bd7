"""What it costs to keep a machine and to go back to it, against the disk's own speed and against KVM alone."""

import json
import os
import shutil
import subprocess

from guests import MIB, Guest, described, ours
from measure import Failed

# The machine's memory, all of it in use and no page like another.
MEMORY = 1024 * MIB


def written(path, size):
    """MiB/s at which the disk takes so many bytes in order, past the page cache, until they are durable."""
    command = [
        "fio", "--name=plain", "--ioengine=io_uring", f"--filename={path}", "--rw=write", "--bs=1M", "--iodepth=8",
        "--direct=1", "--fallocate=none", "--end_fsync=1", f"--size={size}", "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    start = done.stdout.find("{")
    if done.returncode != 0 or start < 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    job = json.loads(done.stdout[start:])["jobs"][0]
    os.unlink(path)
    # fio's runtime ends before its last fsync, which has a row of its own.
    synced = job["sync"]["lat_ns"]["mean"] * job["sync"]["total_ios"] / 1e6
    return {"mib_s": size / MIB / (job["job_runtime"] + synced) * 1000}


def taken(diskferry, machine, folder):
    """What `machine snapshot` says; the machine ends with it."""
    command = [diskferry, "machine", "snapshot", machine, "--into", folder, "--stop", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def forget(folder):
    """Have the host read what is in a folder from its disk."""
    for name in os.listdir(folder):
        file = os.open(os.path.join(folder, name), os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def restored(diskferry, machine, folder):
    """Milliseconds from the start of the process until the guest says that it goes on, which it does all the time."""
    guest = Guest([diskferry, "run", machine, "--restore", folder, "--json"], "stderr", good=0)
    try:
        return guest.first_byte()
    finally:
        guest.close()


def snapshots(diskferry, place, rounds, kvm_alone):
    """A machine of 1 GiB is kept and comes back; samples by cell and subject."""
    cells = {}
    folder = os.path.join(place, "kept")
    saving = cells.setdefault("snapshot of a machine, 1G in use", {})
    coming = cells.setdefault("restore of a machine, 1G in use", {})
    words = "do=fill do=spin every=2M rounds=0"
    for _ in range(rounds):
        machine = described(place, words, memory=MEMORY)
        guest = ours(diskferry, place, words, memory=MEMORY)
        try:
            guest.until("spin")
            said = taken(diskferry, machine, folder)
            guest.process.wait(60)
        finally:
            guest.close()
        size = said["memory_bytes"]
        saving.setdefault("diskferry", []).append(
            {"mib_s": size / MIB / said["memory_ms"] * 1000, "ms": said["pause_ms"]}
        )
        saving.setdefault("the disk, by fio", []).append(written(os.path.join(place, "plain"), size))
        forget(folder)
        kvm = kvm_alone()
        coming.setdefault("KVM alone", []).append({"ms": kvm})
        took = restored(diskferry, machine, folder)
        coming.setdefault("diskferry", []).append({"ms": took, "besides_ms": took - kvm})
        shutil.rmtree(folder)
    return cells
