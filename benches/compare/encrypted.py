"""Encrypted NBD beside nbdkit's, and both unencrypted: nbdcopy reads a file of random bytes over one connection of this host.

Needs nbdcopy and nbdkit (scripts/setup.sh). The processor's time is the server's.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

MIB = 1 << 20


def identities(program, folder):
    """Ours, and the same as GnuTLS has them."""

    def run(*words):
        subprocess.run([program, *words], cwd=folder, stdout=subprocess.DEVNULL, check=True)

    for name in ("server", "friend"):
        run("pair", "new", "--identity", name, "--name", "localhost")
    for name, other in (("server", "friend"), ("friend", "server")):
        run("pair", "trust", f"{other}/cert.pem", "--as", other, "--identity", name)
        pki = folder / f"{name}-pki"
        pki.mkdir()
        shutil.copy(folder / other / "cert.pem", pki / "ca-cert.pem")
        role = "client" if name == "friend" else "server"
        for kind in ("cert", "key"):
            shutil.copy(folder / name / f"{kind}.pem", pki / f"{role}-{kind}.pem")


def servers(program, folder):
    """By name: how to start it, and where the disk is then."""
    nbdkit = ["nbdkit", "--foreground", "--ipaddr=127.0.0.1"]
    certificates = f"tls-certificates={folder}"
    sealed = ["--tls=require", f"--{certificates}/server-pki", "--tls-verify-peer"]
    asked = f"?{certificates}/friend-pki"
    serve = [program, "serve", "disk.raw", "--listen"]
    return {
        "diskferry, encrypted": ([*serve, "tls:127.0.0.1:11001", "--identity", "server"], f"nbds://localhost:11001/disk{asked}"),
        "nbdkit, encrypted": ([*nbdkit, "--port=11002", *sealed, "file", "disk.raw"], f"nbds://localhost:11002/{asked}"),
        "diskferry": ([*serve, "tcp:127.0.0.1:11003"], "nbd://localhost:11003/disk"),
        "nbdkit": ([*nbdkit, "--port=11004", "file", "disk.raw"], "nbd://localhost:11004/"),
    }


def spent(process):
    """Seconds of the processor so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def once(command, uri, folder):
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while subprocess.run(["nbdinfo", "--size", uri], capture_output=True, check=False).returncode:
            if server.poll() is not None:
                raise SystemExit(f"error: it has ended: {' '.join(command)}")
            time.sleep(0.05)
        before, began = spent(server), time.monotonic()
        subprocess.run(["nbdcopy", "--connections=1", uri, "null:"], check=True)
        return time.monotonic() - began, spent(server) - before
    finally:
        server.terminate()
        server.wait()


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--diskferry", required=True, type=Path)
    words.add_argument("--directory", required=True, type=Path, help="where the disk goes")
    words.add_argument("--size", type=int, default=1024, help="of the disk, in MiB")
    words.add_argument("--rounds", type=int, default=5)
    words = words.parse_args()
    program = str(words.diskferry.resolve())
    with tempfile.TemporaryDirectory(dir=words.directory.resolve()) as folder:
        folder = Path(folder)
        identities(program, folder)
        with (folder / "disk.raw").open("wb") as disk:
            for _ in range(words.size):
                disk.write(os.urandom(MIB))
        measured = {name: [] for name in servers(program, folder)}
        for _ in range(words.rounds):
            for name, (command, uri) in servers(program, folder).items():
                measured[name].append(once(command, uri, folder))
    gib = words.size / 1024
    print("| server | s/GiB | CPU s/GiB |\n|---|---:|---:|")
    for name, rounds in measured.items():
        took, cpu = (statistics.median(figures) / gib for figures in zip(*rounds))
        print(f"| {name} | {took:.2f} | {cpu:.2f} |")


main()
