"""Readers of event-camera recordings: AEDAT 2.0 and 3.1, and the .bin files of N-MNIST.

Formats: "AEDAT file formats" by iniVation; Orchard et al., "Converting Static Image Datasets to
Spiking Neuromorphic Datasets Using Saccades", Frontiers in Neuroscience 2015, arXiv:1507.07629.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spikeformers.errors import DataError

DVS128_SIDE = 128
N_MNIST_SIDE = 34

_PACKET_HEADER = struct.Struct("<hhiiiiii")
_TIME = struct.Struct("<I")
_POLARITY_PACKET = 1
_END_OF_HEADER = b"#!END-HEADER"
# In N-MNIST an event in this row says that the clock has wrapped, by so much.
_WRAP_ROW, _WRAP_USEC = 240, 1 << 13


@dataclass(frozen=True)
class Events:
    """What a square sensor saw: one entry per event in each array, in the order of the file.

    Attributes:
        x: Column, int64 `[N]`, counted from the left.
        y: Row, int64 `[N]`, counted from the top.
        on: 1 where it became brighter, 0 where darker, int64 `[N]`.
        usec: Time in microseconds, int64 `[N]`.
        side: Pixels along a side of the sensor.
    """

    x: np.ndarray
    y: np.ndarray
    on: np.ndarray
    usec: np.ndarray
    side: int

    def __len__(self) -> int:
        return len(self.x)


def read_aedat2(path: Path) -> Events:
    """Read an AEDAT 2.0 recording of a DVS128 camera.

    Header lines begin with `#`; then each event is 32 bits of address and 32 bits of time,
    the high byte first.
    The address holds the polarity in bit 0, the mirrored column in bits 1 to 7 and the row, from
    the bottom, in bits 8 to 14; bit 15 marks what is no event of a pixel.

    Raises:
        DataError: If the file is truncated, of another format or camera, or without events.
    """
    content = _read(path)
    start = _end_of_lines(content)
    if start == 0 or (content.startswith(b"#!AER-DAT") and not content.startswith(b"#!AER-DAT2")):
        raise DataError(f"{path} is no AEDAT 2.0 file: download it again")
    if (len(content) - start) % 8:
        raise DataError(
            f"{path} is truncated: {len(content) - start} bytes of events, expected a multiple of "
            "8: download it again"
        )
    address, usec = np.frombuffer(content, ">u4", offset=start).reshape(-1, 2).T.astype(np.int64)
    if np.any(address >> 16):
        raise DataError(f"{path} has addresses of 32 bits: it is no recording of a DVS128 camera")
    of_a_pixel = address >> 15 == 0
    address, usec = address[of_a_pixel], usec[of_a_pixel]
    last = DVS128_SIDE - 1
    x, y = last - (address >> 1 & last), last - (address >> 8 & last)
    return _checked(path, Events(x, y, 1 - (address & 1), usec, DVS128_SIDE))


def read_aedat31(path: Path, start: int | None = None, end: int | None = None) -> Events:
    """Read an AEDAT 3.1 recording of a DVS128 camera, or the part with `start <= usec < end`.

    After the header come packets of one kind of event each; the packets of pixel events, which are
    in the order of time, are the ones that are read.

    Raises:
        DataError: If the file is truncated, of another format or camera, or without events there.
    """
    content = _read(path)
    line_end = content.find(b"\n", max(content.find(_END_OF_HEADER), 0))
    if not content.startswith(b"#!AER-DAT3.") or _END_OF_HEADER not in content or line_end < 0:
        raise DataError(f"{path} is no AEDAT 3.1 file: download it again")
    low = -1 if start is None else start
    high = 1 << 62 if end is None else end
    packets = _polarity_packets(content, line_end + 1, path, low, high)
    word, usec = np.concatenate(packets, axis=1) if packets else np.zeros((2, 0), np.int64)
    chosen = (usec >= low) & (usec < high) & (word & 1 == 1)
    word, usec = word[chosen], usec[chosen]
    events = Events(word >> 17 & 0x7FFF, word >> 2 & 0x7FFF, word >> 1 & 1, usec, DVS128_SIDE)
    return _checked(path, events, "" if start is None else f" from {start} to {end} microseconds")


def _polarity_packets(content: bytes, at: int, path: Path, low: int, high: int) -> list[np.ndarray]:
    """Return word and time `[2, N]` of the packets that reach into `low <= usec < high`."""
    packets = []
    while at < len(content):
        if at + _PACKET_HEADER.size > len(content):
            raise DataError(f"{path} is truncated at byte {at}: download it again")
        header = _PACKET_HEADER.unpack_from(content, at)
        kind, _source, size, _offset, overflow, capacity, number, _valid = header
        at += _PACKET_HEADER.size
        if size < 1 or not 0 <= number <= capacity or (kind == _POLARITY_PACKET and size != 8):
            raise DataError(f"{path} is damaged before byte {at}: download it again")
        if at + size * capacity > len(content):
            raise DataError(f"{path} is truncated at byte {at}: download it again")
        if kind == _POLARITY_PACKET and number:
            # The clock has 31 bits; the header counts how often it has wrapped.
            before = overflow << 31
            first = before + _TIME.unpack_from(content, at + 4)[0]
            last = before + _TIME.unpack_from(content, at + 8 * number - 4)[0]
            if last >= low and first < high:
                words = np.frombuffer(content, "<u4", 2 * number, at).reshape(-1, 2).T
                packets.append(words + np.array([[0], [before]]))
        at += size * capacity
    return packets


def read_n_mnist_bin(path: Path) -> Events:
    """Read a recording of N-MNIST: five bytes per event.

    They are column, row, and in 24 bits the polarity and 23 bits of time, the high byte first.

    Raises:
        DataError: If the file is truncated, of another camera, or without events.
    """
    content = _read(path)
    if len(content) % 5:
        raise DataError(
            f"{path} is truncated: {len(content)} bytes, expected a multiple of 5: download it "
            "again"
        )
    x, y, *time = np.frombuffer(content, np.uint8).reshape(-1, 5).T.astype(np.int64)
    usec = (time[0] & 127) << 16 | time[1] << 8 | time[2]
    wraps = y == _WRAP_ROW
    usec += _WRAP_USEC * np.cumsum(wraps)
    x, y, on, usec = (values[~wraps] for values in (x, y, time[0] >> 7, usec))
    return _checked(path, Events(x, y, on, usec, N_MNIST_SIDE))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error}): put the recording there") from error


def _end_of_lines(content: bytes) -> int:
    """Return where the leading lines that begin with `#` end."""
    at = 0
    while content.startswith(b"#", at):
        at = content.find(b"\n", at) + 1
        if at == 0:
            return len(content)
    return at


def _checked(path: Path, events: Events, where: str = "") -> Events:
    if len(events) == 0:
        raise DataError(f"{path} has no events{where}: download it again, or leave it out")
    x, y = int(events.x.max()), int(events.y.max())
    if max(x, y) >= events.side:
        raise DataError(
            f"{path} has an event at column {x} or row {y}, outside of the {events.side}x"
            f"{events.side} sensor: it is of another camera or damaged, download it again"
        )
    return events
