"""Two sites on this machine: their namespaces, the disk that moves between them, and the programs that run there.

For link.py and wan.py.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

MIB = 1 << 20
SIZE = 2048 * MIB
ADDRESSES = {"source": "10.77.3.1", "target": "10.77.3.2"}


def ip(*words, check=True):
    subprocess.run(["ip", *words], check=check, capture_output=True)


class Namespaces:
    """One for each site."""

    def __init__(self):
        self.names = {site: f"df-{os.getpid()}-{site}" for site in ADDRESSES}
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")

    def at(self, site):
        return ["ip", "netns", "exec", self.names[site]]

    def close(self):
        for name in self.names.values():
            ip("netns", "del", name, check=False)


def image(path, size=SIZE, text=True):
    """What the disk holds in the beginning, the same each time: half of it that nothing makes shorter; then a quarter of
    words that zstd makes a third of, of which every second granule is there eight times, unless without `text`; and
    nothing in the rest."""
    chance = random.Random(1)
    with open(path, "wb") as file:
        for _ in range(size // MIB // 2):
            file.write(chance.randbytes(MIB))
        if text:
            for part in words_of(size // 32, random.Random(2)):
                file.write(part)
        file.truncate(size)


def words_of(length, chance):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(3, 10))) for _ in range(4000)]
    text = bytearray()
    while len(text) < length:
        text += " ".join(chance.choices(words, k=20000)).encode() + b"\n"
    text = text[:length]
    for turn in range(8):
        for at in range(0, length, 2 * 4096):
            text[at : at + 16] = b"%4d %10d " % (turn, at)
        yield text


class Programs:
    """What runs at both sites, in a folder of its own."""

    # What it is called how long the disk was in service nowhere.
    in_service = "pause of the disk ms"

    def __init__(self, sites, folder):
        self.sites, self.folder = sites, folder
        self.running = []
        self.environment = dict(os.environ, DISKFERRY_RUN_DIR=str(folder / "run"))

    def start(self, command):
        log = (self.folder / f"{len(self.running)}.log").open("w")
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        self.running.append(process)
        return process

    def until(self, what, true, within=300, every=0.02):
        end = time.monotonic() + within
        while not true():
            if time.monotonic() > end:
                raise SystemExit(f"error: waited in vain: {what}")
            time.sleep(every)

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


class Diskferry(Programs):
    """A disk that is served at the source, and a target that waits for it."""

    # Whether the move, and what clients ask afterwards, is encrypted.
    encrypted = False
    # Besides, what `receive` and `mirror start` are told.
    receives = ()
    terms = ()

    def __init__(self, program, sites, folder):
        super().__init__(sites, folder)
        self.program = str(program.resolve())
        self.uri = f"nbd+unix:///disk?socket={folder}/s"
        self.there = None

    def run(self, *words):
        done = subprocess.run(
            [self.program, *words], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"error: {' '.join(words)}: {done.stderr}")
        return done.stdout

    def plainly(self, *verb):
        """Earlier builds do not ask for it."""
        plain = not self.encrypted and "--plain" in self.run(*verb, "--help")
        return ["--plain"] if plain else []

    def identity(self, site):
        return ["--identity", site] if self.encrypted else []

    def acquaint(self):
        """Each site has the other's certificate."""
        for site in ADDRESSES:
            self.run("pair", "new", "--identity", site, "--name", site)
        for site, other in (("source", "target"), ("target", "source")):
            self.run("pair", "trust", f"{other}/cert.pem", "--as", other, "--identity", site)

    def status(self):
        return json.loads(self.run("mirror", "status", "disk.vhdx", "--json").splitlines()[-1])

    def prepare(self, raw):
        self.folder.joinpath("in").mkdir()
        self.run("convert", str(raw), "disk.vhdx", "--quiet")
        if self.encrypted:
            self.acquaint()
        socket = self.folder / "s"
        serve = ["serve", "disk.vhdx", "--listen", f"unix:{socket}", *self.identity("source")]
        self.start([*self.sites.at("source"), self.program, *serve])
        self.until("serve", socket.exists)
        self.receive()
        time.sleep(1)

    def receive(self):
        there = ADDRESSES["target"]
        # Clients of the source go to the first.
        serves = [f"tls:{there}:10810"] if self.encrypted else []
        serves = [word for at in (*serves, f"tcp:{there}:10809") for word in ("--serve", at)]
        self.there = self.start([
            *self.sites.at("target"), self.program, "receive", "--listen", f"{self.scheme()}:{there}:9000", "--into", "in",
            *serves, *self.identity("target"), *self.plainly("receive"), *self.receives,
        ])  # fmt: skip

    def begin(self):
        to = f"{self.scheme()}:{ADDRESSES['target']}:9000"
        words = ["--manual", *self.plainly("mirror", "start"), *self.terms]
        self.run("mirror", "start", "disk.vhdx", "--to", to, *words)

    def scheme(self):
        return "tls" if self.encrypted else "tcp"

    def is_ready(self):
        return self.status()["stage"] == "synced"

    def switch(self):
        self.run("mirror", "cutover", "disk.vhdx", "--wait")

    def waiter(self):
        """Somebody at the target for whom the disk is not yet in service."""
        program = Path(__file__).parent / "waiter.py"
        words = [sys.executable, str(program.resolve()), ADDRESSES["target"], "10809", "disk"]
        waiter = subprocess.Popen([*self.sites.at("target"), *words], stdout=subprocess.PIPE, text=True)
        if waiter.stdout.readline() != "waiting\n":
            raise SystemExit("error: nobody waits at the target")
        return waiter

    def pause_ms(self):
        return self.status()["pause"] / 1000
