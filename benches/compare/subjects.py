"""What is compared: disks made and served by diskferry and by qemu, each a name with two commands."""

import os
import subprocess

from measure import Server, run

QEMU = ["--persistent", "--cache=none", "--aio=io_uring", "--discard=unmap"]


class Subject:
    """A disk image and the server that serves it."""

    def __init__(self, name, make, serve):
        self.name = name
        self.make = make
        self.serve = serve

    def create(self, place, size):
        """An empty disk; its path."""
        path = os.path.join(place, f"{self.name}.img")
        if os.path.exists(path):
            os.unlink(path)
        self.make(path, size)
        return path

    def start(self, path, place):
        """Its server."""
        socket = os.path.join(place, "s.sock")
        return Server(self.serve(path, socket), socket)


def sparse(path, size):
    """A raw file that is one hole."""
    with open(path, "xb") as file:
        file.truncate(size)


def subjects(diskferry):
    """All of them by name; `diskferry` is the path of the program."""

    def ours(image_format):
        return lambda path, socket: [
            diskferry, "serve", "--quiet", "--format", image_format,
            "--listen", f"unix:{socket}", path,
        ]  # fmt: skip

    def make_vhdx(block):
        words = [diskferry, "create", "--format", "vhdx", "--block-size", block]
        return lambda path, size: run([*words, path, str(size)])

    def qemu(image_format):
        return lambda path, socket: [
            "qemu-nbd", *QEMU, "--format", image_format, "--socket", socket, path,
        ]  # fmt: skip

    def qemu_make(image_format, *options):
        return lambda path, size: subprocess.run(
            ["qemu-img", "create", "-q", "-f", image_format, *options, path, str(size)], check=True
        )

    listed = [
        Subject("diskferry-vhdx", make_vhdx("1M"), ours("vhdx")),
        Subject("diskferry-vhdx-32M", make_vhdx("32M"), ours("vhdx")),
        Subject("diskferry-raw", sparse, ours("raw")),
        Subject("qemu-vhdx", qemu_make("vhdx", "-o", "block_size=1M"), qemu("vhdx")),
        Subject("qemu-qcow2", qemu_make("qcow2"), qemu("qcow2")),
        Subject("qemu-raw", sparse, qemu("raw")),
    ]
    return {subject.name: subject for subject in listed}
