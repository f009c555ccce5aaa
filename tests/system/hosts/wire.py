"""A long cable: `python wire.py DEVICE DEVICE DELAY_S LOSS` makes two tap devices and carries packets between them.

Each packet arrives DELAY_S later, in order; a share LOSS of them does not arrive. Says "ready" when the devices exist.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
LONGEST = 65536
"""Maximum number of bytes of a packet."""


def tap(name: str) -> int:
    """Make a device; returns a file whose reads and writes are the device's packets."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def carry(ends: tuple[int, int], delay_s: float, loss: float) -> None:
    """Carry packets in the order in which they came, because all of them take the same time."""
    other = dict(zip(ends, reversed(ends), strict=True))
    underway: deque[tuple[float, int, bytes]] = deque()
    while True:
        wait_s = max(0.0, underway[0][0] - time.monotonic()) if underway else None
        readable, _, _ = select.select(ends, [], [], wait_s)
        for end in readable:
            packet = read(end)
            if packet and random.random() >= loss:
                underway.append((time.monotonic() + delay_s, other[end], packet))
        while underway and underway[0][0] <= time.monotonic():
            _, end, packet = underway.popleft()
            write(end, packet)


def read(end: int) -> bytes:
    """Read a packet, or nothing while the device is down."""
    try:
        return os.read(end, LONGEST)
    except OSError:
        time.sleep(0.001)
        return b""


def write(end: int, packet: bytes) -> None:
    with suppress(OSError):  # the device is down, as a cable may be
        os.write(end, packet)


if __name__ == "__main__":
    near, far, delay, lost = sys.argv[1:]
    both = (tap(near), tap(far))
    print("ready", flush=True)
    carry(both, float(delay), float(lost))
