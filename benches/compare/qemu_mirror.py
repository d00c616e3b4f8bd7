"""QEMU's mirror between two sites: qemu-storage-daemon with the disk at the source, another that exports an empty one over
NBD at the target. Its parts are asked for by QMP."""

import json
import os
import select
import socket
import subprocess
import time

from sites import ADDRESSES, Programs

PORT = 10809


class Failed(Exception):
    """The mirror ended in an error."""


class Qmp:
    """A connection to a daemon's control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.pending = b""
        self.events = []
        self.line(60)
        self.ask("qmp_capabilities")

    def line(self, within):
        """The next message; None when there is none in so many seconds."""
        end = time.monotonic() + within
        while b"\n" not in self.pending:
            if not select.select([self.socket], [], [], max(0, end - time.monotonic()))[0]:
                return None
            heard = self.socket.recv(1 << 16)
            if not heard:
                raise SystemExit("error: qemu-storage-daemon ended")
            self.pending += heard
        line, self.pending = self.pending.split(b"\n", 1)
        return json.loads(line)

    def ask(self, command, **arguments):
        request = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            # Where the link is full of other things, an answer that needs it takes long.
            message = self.line(300)
            if message is None:
                raise SystemExit(f"error: {command} is never answered")
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise Failed(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def listen(self):
        """Takes the events that came meanwhile."""
        while (message := self.line(0)) is not None:
            self.events.append(message)


class Qemu(Programs):
    """A disk that the daemon serves at the source, and a target for it."""

    def __init__(self, mode, sites, folder):
        super().__init__(sites, folder)
        self.mode = mode
        self.uri = f"nbd+unix:///disk?socket={folder}/s"
        self.there = self.qmp = None
        self.targets = 0

    def daemon(self, site, name, *words):
        control = self.folder / f"{name}.qmp"
        control.unlink(missing_ok=True)
        process = self.start([
            *self.sites.at(site), "qemu-storage-daemon",
            "--chardev", f"socket,path={control},server=on,wait=off,id=qmp", "--monitor", "chardev=qmp", *words,
        ])  # fmt: skip
        self.until(f"control socket {name}", control.exists)
        return process, control

    def prepare(self, raw):
        source, target = self.folder / "disk.raw", self.folder / "there.raw"
        subprocess.run(["cp", "--sparse=always", raw, source], check=True)
        with open(target, "wb") as file:
            file.truncate(os.stat(raw).st_size)
        _, control = self.daemon(
            "source", "here", "--blockdev", f"file,node-name=disk,filename={source},discard=unmap",
            "--nbd-server", f"addr.type=unix,addr.path={self.folder}/s,max-connections=0",
            "--export", "nbd,id=export,node-name=disk,name=disk,writable=on",
        )  # fmt: skip
        self.receive()
        self.qmp = Qmp(control)

    def receive(self):
        target = self.folder / "there.raw"
        self.there, control = self.daemon(
            "target", "there", "--blockdev", f"file,node-name=disk,filename={target},discard=unmap",
            "--nbd-server", f"addr.type=inet,addr.host={ADDRESSES['target']},addr.port={PORT},max-connections=0",
            "--export", "nbd,id=export,node-name=disk,name=disk,writable=on",
        )  # fmt: skip
        # The export is there once the daemon answers.
        Qmp(control).socket.close()

    def begin(self):
        self.targets += 1
        self.qmp.events.clear()
        name = f"there{self.targets}"
        server = {"type": "inet", "host": ADDRESSES["target"], "port": str(PORT)}
        self.qmp.ask("blockdev-add", **{"driver": "nbd", "node-name": name, "server": server, "export": "disk"})
        job = {"job-id": "mirror", "device": "disk", "target": name, "sync": "full", "copy-mode": self.mode}
        self.qmp.ask("blockdev-mirror", **job)

    def heard(self, event):
        """The data of the event, if it came."""
        self.qmp.listen()
        return next((said["data"] for said in self.qmp.events if said["event"] == event), None)

    def is_ready(self):
        ended = self.heard("BLOCK_JOB_COMPLETED")
        if ended is not None:
            raise Failed(ended.get("error", "it ended"))
        return self.heard("BLOCK_JOB_READY") is not None

    def copied(self):
        jobs = self.qmp.ask("query-block-jobs")
        return jobs[0]["offset"] if jobs else 0

    def switch(self):
        """The daemon writes at the target from now on, and its clients go on through it."""
        self.qmp.ask("block-job-complete", device="mirror")
        ended = lambda: self.heard("BLOCK_JOB_COMPLETED") is not None  # noqa: E731
        self.until("the end of the mirror", ended, every=0.002)
        error = self.heard("BLOCK_JOB_COMPLETED").get("error")
        if error:
            raise Failed(error)

    def waiter(self):
        """The target's export is open all the while."""
        return None

    def pause_ms(self):
        """It says nothing of it."""
        return None
