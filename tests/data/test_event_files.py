import numpy as np
import pytest

from spikeformers.data._event_files import read_aedat2, read_aedat31, read_n_mnist_bin
from spikeformers.errors import DataError
from tests.data.writers import (
    aedat31_packet,
    random_events,
    write_aedat2,
    write_aedat31,
    write_n_mnist_bin,
)

FORMATS = {
    "aedat2": (read_aedat2, write_aedat2, 128),
    "aedat31": (read_aedat31, write_aedat31, 128),
    "n_mnist": (read_n_mnist_bin, write_n_mnist_bin, 34),
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def written(request, tmp_path):
    """A file of 120 events: its path, reader and events."""
    read, write, side = request.param
    events = random_events(120, side)
    write(tmp_path / "recording", *events)
    return tmp_path / "recording", read, events


def test_every_event_comes_back(written):
    path, read, expected = written
    events = read(path)
    found = (events.x, events.y, events.on, events.usec)
    for name, array, values in zip(("x", "y", "on", "usec"), found, expected, strict=True):
        assert array.dtype == np.int64 and np.array_equal(array, values), name
    assert len(events) == 120


@pytest.mark.parametrize("missing", [1, 4, 7])
def test_truncated(written, missing):
    path, read, _ = written
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(DataError, match=r"recording is truncated.*download it again"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"<html>not found</html>", id="html"),
        pytest.param(b"#!AER-DAT4.0\r\nabc", id="aedat4"),
        pytest.param(b"# just a remark without an end", id="header"),
        pytest.param(bytes([9, 255, 0, 0, 1] * 8), id="zeros"),
    ],
)
def test_foreign(written, content):
    path, read, _ = written
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"recording (is|has) .*download it again"):
        read(path)


def test_without_events(written):
    path, read, _ = written
    write = next(write for reader, write, _ in FORMATS.values() if reader is read)
    write(path, *random_events(0, 34))
    with pytest.raises(DataError, match="recording has no events"):
        read(path)


def test_missing(written):
    path, read, _ = written
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*recording"):
        read(path)


def test_aedat2_of_another_version_or_camera(tmp_path):
    path = tmp_path / "recording.aedat"
    write_aedat2(path, *random_events(3, 128), version=b"3.1")
    with pytest.raises(DataError, match=r"is no AEDAT 2\.0 file"):
        read_aedat2(path)
    x, y, on, usec = random_events(3, 128)
    write_aedat2(path, x, y - (1 << 9), on, usec)
    with pytest.raises(DataError, match="no recording of a DVS128"):
        read_aedat2(path)


def test_aedat2_leaves_out_what_no_pixel_says(tmp_path):
    path = tmp_path / "recording.aedat"
    x, y, on, usec = random_events(6, 128)
    # A row below the sensor sets the bit above the rows, as a synchronisation pulse does.
    write_aedat2(path, x, np.where(np.arange(6) == 2, y - 128, y), on, usec)
    assert np.array_equal(read_aedat2(path).usec, np.delete(usec, 2))


def test_aedat31_of_a_part(tmp_path):
    path = tmp_path / "recording.aedat"
    x, y, on, usec = random_events(500, 128)
    write_aedat31(path, x, y, on, usec, packet=7)
    part = read_aedat31(path, 2000, 3000)
    inside = (usec >= 2000) & (usec < 3000)
    assert inside.sum() == 100
    assert np.array_equal(part.usec, usec[inside]) and np.array_equal(part.x, x[inside])
    with pytest.raises(DataError, match="no events from 9000 to 9500 microseconds"):
        read_aedat31(path, 9000, 9500)


def test_aedat31_counts_wraps_of_the_clock_and_knows_invalid_events_and_spare_places(tmp_path):
    path = tmp_path / "recording.aedat"
    x, y, on, usec = random_events(4, 128)
    write_aedat31(path, x, y, on, usec)
    valid = np.array([1, 0, 1])
    late = aedat31_packet(np.array([5 << 17 | 6 << 2]) | valid, 7 * valid, overflow=2, spare=3)
    path.write_bytes(path.read_bytes() + late)
    events = read_aedat31(path)
    assert events.usec[4:].tolist() == [7 + 2**32] * 2
    assert (events.x[4:].tolist(), events.y[4:].tolist()) == ([5, 5], [6, 6])


@pytest.mark.parametrize(("field", "value"), [(4, 0), (4, 5), (20, 10**6), (20, -1)])
def test_aedat31_with_a_damaged_packet(tmp_path, field, value):
    path = tmp_path / "recording.aedat"
    write_aedat31(path, *random_events(4, 128))
    content = bytearray(path.read_bytes())
    at = content.index(b"#!END-HEADER\r\n") + 14 + field
    content[at : at + 4] = value.to_bytes(4, "little", signed=True)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"recording\.aedat is damaged before byte"):
        read_aedat31(path)


def test_n_mnist_counts_wraps_of_the_clock(tmp_path):
    path = tmp_path / "recording.bin"
    x, y, on, usec = random_events(6, 34)
    write_n_mnist_bin(path, x, np.where(np.arange(6) == 2, 240, y), on, usec)
    expected = np.delete(usec + 8192 * (np.arange(6) > 2), 2)
    assert np.array_equal(read_n_mnist_bin(path).usec, expected)


@pytest.mark.data
def test_real_files(real_data):
    """Facts of the files: counts and spans of time, and what no DVS128 or N-MNIST file is."""
    events = read_n_mnist_bin(real_data / "event-formats/nmnist_sample.bin")
    assert len(events) == 4325
    assert events.usec[-1] < 320_000 and np.all(np.diff(events.usec) >= 0)
    for path in sorted((real_data / "dvs128-objects").glob("take?/*.aedat")):
        events = read_aedat2(path)
        seconds = (events.usec[-1] - events.usec[0]) / 1e6
        assert seconds == pytest.approx(13 if "take1" in str(path) else 7, abs=0.01), path
        assert np.all(np.diff(events.usec) >= 0), path
    for path in sorted((real_data / "event-formats").iterdir()):
        for read, _, _ in FORMATS.values():
            if path.name == "nmnist_sample.bin" and read is read_n_mnist_bin:
                continue
            with pytest.raises(DataError, match=path.name):
                read(path)
