"""Waits for a disk where it is going: reads from an export that lets nobody go on yet, and prints when that was answered,
in seconds of the epoch. For wan.py, which runs it at the target.

    waiter.py HOST PORT EXPORT
"""

import socket
import struct
import sys
import time

EXPORT_NAME, READ = 1, 0
FIXED_NEWSTYLE = 1


def main():
    host, port, export = sys.argv[1:]
    server = socket.create_connection((host, int(port)))
    stream = server.makefile("rb")
    greeting = stream.read(18)
    if greeting[:16] != b"NBDMAGICIHAVEOPT":
        raise SystemExit("error: that is no NBD server")
    name = export.encode()
    server.sendall(struct.pack(">I", FIXED_NEWSTYLE) + b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, len(name)) + name)
    # Its size and flags, and the zeros that nobody asked to leave out.
    if len(stream.read(8 + 2 + 124)) != 134:
        raise SystemExit(f"error: {export} is not there")
    server.sendall(struct.pack(">IHHQQI", 0x25609513, 0, READ, 1, 0, 4096))
    print("waiting", flush=True)
    magic, error, _ = struct.unpack(">IIQ", stream.read(16))
    if magic != 0x67446698 or error:
        raise SystemExit(f"error: the read failed: {error}")
    print(time.time(), flush=True)


main()
