"""Run the freestanding guest (docs/vmm-guest.md) on a machine and measure the process around it.

The same guest runs on diskferry's machine and on qemu's. Decides nothing about what is compared.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
import time

from measure import Failed

MIB = 1 << 20
MEMORY = 512 * MIB
# Threads on which processors of the guest run, by the beginnings of their names: ours, qemu's.
PROCESSORS = ("vcpu-", "CPU ")
TICK = os.sysconf("SC_CLK_TCK")


def guest_elf(diskferry):
    """The guest that was built with this diskferry, as a file; None when only the program is there."""
    built = os.path.join(os.path.dirname(diskferry), "build", "vmm-*", "out", "guest.elf")
    return max(glob.glob(built), key=os.path.getmtime, default=None)


def qemu_system():
    """The emulator, where it is installed or scripts/setup.sh has unpacked it; else None."""
    unpacked = os.path.abspath("target/qemu/qemu-system-x86_64")
    return shutil.which("qemu-system-x86_64") or (unpacked if os.path.exists(unpacked) else None)


def described(place, words, disk=None, memory=MEMORY):
    """The file that describes a machine of ours with one processor; its path."""
    path = os.path.join(place, "machine.toml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'vcpus = 1\nmemory = "{memory}"\n')
        file.write(f'boot.kernel = "built-in"\nboot.command_line = "{words}"\n')
        # Its snapshots go there.
        file.write(f'confine.paths = ["{place}"]\n')
        if disk:
            file.write(f'[[disk]]\npath = "{disk[0]}"\nformat = "{disk[1]}"\n')
    return path


def ours(diskferry, place, words, disk=None, memory=MEMORY):
    """Start diskferry's machine; `disk` is a path and a format."""
    return Guest([diskferry, "run", described(place, words, disk, memory), "--json"], "stderr")


def qemu(program, elf, words, disk=None):
    """Start qemu's, with KVM and an I/O thread for the disk. Its threads have names, see `PROCESSORS`."""
    command = [
        program, "-name", "guest,debug-threads=on", "-machine", "q35", "-accel", "kvm", "-m", str(MEMORY // MIB),
        "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", elf, "-append", words,
    ]  # fmt: skip
    if disk:
        path, image_format = disk
        node = {
            "driver": image_format,
            "node-name": "disk",
            "discard": "unmap",
            "file": {
                "driver": "file", "filename": path, "aio": "io_uring",
                "cache": {"direct": True}, "discard": "unmap",
            },
        }  # fmt: skip
        command += [
            "-object", "iothread,id=io", "-blockdev", json.dumps(node),
            "-device", "virtio-blk-pci,drive=disk,iothread=io,num-queues=1",
        ]  # fmt: skip
    # Its guest ends it with twice its code and 1.
    return Guest(command, "stdout", good=1)


class Guest:
    """A process with a machine in it, and what the guest says on its console."""

    def __init__(self, command, console, good=0):
        self.command = command
        self.good = good
        self.beside = tempfile.TemporaryFile()
        streams = {"stdout": self.beside, "stderr": self.beside, console: subprocess.PIPE}
        self.began = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, bufsize=0, **streams)
        self.console = getattr(self.process, console)
        self.held = b""

    def first_byte(self):
        """Milliseconds from its start until the guest said something."""
        self.held = self.console.read(1)
        took = (time.perf_counter() - self.began) * 1000
        if not self.held:
            raise self.failed("said nothing")
        return took

    def until(self, event):
        """Wait until the guest says this; what it says."""
        while True:
            line, self.held = self.held + self.console.readline(), b""
            if not line:
                raise self.failed(f"ended without {event}")
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if said.get("event") == "panic":
                raise self.failed(line.decode(errors="replace"))
            if said.get("event") == event:
                return said

    def ticks_in_ms(self):
        """Ticks of the guest's time stamp counter in a millisecond, as diskferry has said."""
        self.beside.seek(0)
        return json.loads(self.beside.readline())["tsc_khz"]

    def cpu(self):
        """Seconds of CPU outside of the guest so far: of all threads that run no processor, to the nanosecond;
        and of those that do, without the guest's own time, which the kernel counts in ticks of the clock."""
        workers = processors = 0.0
        for task in glob.glob(f"/proc/{self.process.pid}/task/*"):
            try:
                with open(f"{task}/stat") as stat, open(f"{task}/schedstat") as schedule:
                    name, fields = re.search(r"\((.*)\) (.*)", stat.read()).groups()
                    ran = int(schedule.read().split()[0]) / 1e9
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name.startswith(PROCESSORS):
                # stime, field 15 of proc_pid_stat(5); guest time is part of utime.
                processors += int(fields.split()[12]) / TICK
            else:
                workers += ran
        return workers, processors

    def overhead_kib(self):
        """Resident memory besides the guest's: all, and what is this process's alone."""
        resident = own = 0
        size = 0
        with open(f"/proc/{self.process.pid}/smaps") as mappings:
            for line in mappings:
                name, _, value = line.partition(":")
                if name == "Size":
                    size = int(value.split()[0]) * 1024
                elif size < MEMORY:
                    if name == "Rss":
                        resident += int(value.split()[0])
                    elif name in ("Private_Dirty", "Private_Clean"):
                        own += int(value.split()[0])
        return resident, own

    def end(self):
        """Wait until the guest has switched the machine off."""
        while self.console.read(1 << 16):
            pass
        if self.process.wait(60) != self.good:
            raise self.failed(f"ended with {self.process.returncode}")

    def close(self):
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.console.close()
        self.beside.close()

    def failed(self, what):
        """The error to be raised when it does not do what it has to."""
        return Failed(f"{' '.join(self.command)}: {what}")
