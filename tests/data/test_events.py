import pickle
import zipfile

import numpy as np
import pytest
import torch

from spikeformers.data import load_dataset, read_recording
from spikeformers.data._class_names import CIFAR10_CLASSES, GESTURE_CLASSES
from spikeformers.data._event_files import Events, read_aedat2
from spikeformers.data._events import integrate, picture
from spikeformers.errors import ConfigError, DataError
from tests.data.writers import (
    random_events,
    write_aedat2,
    write_gesture_set,
    write_n_mnist_bin,
)


def events_of(count, side, seed=0):
    return Events(*random_events(count, side, seed), side)


def write_cifar10_dvs(root, per_class=20):
    for name in CIFAR10_CLASSES:
        for number in range(per_class):
            path = root / name / f"cifar10_{name}_{number}.aedat"
            write_aedat2(path, *random_events(30, 128, number))


def write_n_mnist(root, digits="0123456789"):
    for folder in ("Train", "Test"):
        for digit in digits:
            path = root / folder / digit / f"0000{digit}.bin"
            write_n_mnist_bin(path, *random_events(25, 34, int(digit)))


@pytest.mark.parametrize(("count", "timesteps"), [(103, 4), (12, 12), (100, 1), (5, 8)])
def test_frames_hold_equally_many_events_and_the_last_one_the_rest(count, timesteps):
    frames = integrate(events_of(count, 7), timesteps)
    assert (frames.shape, frames.dtype) == ((timesteps, 2, 7, 7), torch.float32)
    each = max(count // timesteps, 1)
    expected = [each if t < min(count, timesteps) else 0 for t in range(timesteps)]
    expected[-1] += max(count - each * timesteps, 0)
    assert frames.sum((1, 2, 3)).tolist() == expected


def test_frames_equal_a_plain_loop():
    events = events_of(211, 6)
    expected = torch.zeros(5, 2, 6, 6)
    for i in range(len(events)):
        expected[min(i // 42, 4), events.on[i], events.y[i], events.x[i]] += 1
    assert torch.equal(integrate(events, 5), expected)
    assert expected.max() > 1


def test_picture_is_red_where_brighter_and_blue_where_darker():
    frames = torch.zeros(3, 2, 1, 3)
    frames[:, 0, 0, 0] = 4
    frames[1, 1, 0, 1] = 3
    shown = picture(frames)
    assert (shown.shape, shown.dtype) == ((3, 1, 3), torch.uint8)
    assert shown[:, 0].T.tolist() == [[0, 0, 255], [round(255 * 0.5), 0, 0], [0, 0, 0]]
    batch = torch.stack((frames, frames * 7))
    assert torch.equal(picture(batch), torch.stack((shown, shown)))
    assert picture(torch.zeros(1, 2, 2, 2)).max() == 0


def test_n_mnist(tmp_path):
    write_n_mnist(tmp_path)
    train, test = (load_dataset("n_mnist", tmp_path, split, 3) for split in ("train", "test"))
    assert (len(train), len(test), train.channels) == (10, 10, 2)
    frames, label = train[7]
    assert (label, train.classes[label]) == (7, "7")
    assert torch.equal(frames, integrate(events_of(25, 34, 7), 3))


def test_dvs128_gesture(tmp_path):
    write_gesture_set(tmp_path / "DvsGesture", train=("user01_led", "user02_lab"), test=("user03",))
    train = load_dataset("dvs128_gesture", tmp_path, timesteps=4)
    test = load_dataset("dvs128_gesture", tmp_path / "DvsGesture", "test", 4)
    assert (len(train), len(test), train.classes) == (22, 11, GESTURE_CLASSES)
    assert [label for _, label in train] == [*range(11), *range(11)]
    x, y, on, usec = random_events(2200, 128, 1)
    part = slice(600, 700)
    gesture = Events(x[part], y[part], on[part], usec[part], 128)
    assert torch.equal(train[11 + 3][0], integrate(gesture, 4))


def test_dvs128_gesture_with_names_of_its_own(tmp_path):
    write_gesture_set(tmp_path, classes=2)
    (tmp_path / "gesture_mapping.csv").write_text("action,label\nwave,2\nclap,1\n")
    assert load_dataset("dvs128_gesture", tmp_path, timesteps=1).classes == ("clap", "wave")


def test_cifar10_dvs_takes_the_first_files_by_name_for_training(tmp_path):
    write_cifar10_dvs(tmp_path)
    train = load_dataset("cifar10_dvs", tmp_path, timesteps=2)
    test = load_dataset("cifar10_dvs", tmp_path, "test", 2)
    assert (len(train), len(test), train.classes) == (180, 20, CIFAR10_CLASSES)
    # By name, 9 comes last, and 8 before it.
    assert torch.equal(test[0][0].transpose(2, 3), integrate(events_of(30, 128, 8), 2))
    assert torch.equal(test[1][0].transpose(2, 3), integrate(events_of(30, 128, 9), 2))
    assert test[19][1] == 9


def test_a_recording_alone_equals_the_one_in_the_set(tmp_path):
    write_cifar10_dvs(tmp_path, 10)
    frames, _ = load_dataset("cifar10_dvs", tmp_path, timesteps=3)[0]
    path = tmp_path / "airplane/cifar10_airplane_0.aedat"
    assert torch.equal(read_recording("cifar10_dvs", path, 3), frames)
    with pytest.raises(DataError, match=r"no recording .*none\.bin: check the path"):
        read_recording("n_mnist", tmp_path / "none.bin", 3)
    with pytest.raises(ConfigError, match="mnist is no data set of events"):
        read_recording("mnist", path, 3)


@pytest.mark.parametrize("timesteps", [None, 0])
def test_the_number_of_frames_has_to_be_given(tmp_path, timesteps):
    write_n_mnist(tmp_path)
    with pytest.raises(ConfigError, match=rf"timesteps is {timesteps}, .*'n_mnist' holds record"):
        load_dataset("n_mnist", tmp_path, timesteps=timesteps)


def test_worker_processes_can_get_a_set(tmp_path):
    write_n_mnist(tmp_path)
    train = load_dataset("n_mnist", tmp_path, timesteps=3)
    assert torch.equal(pickle.loads(pickle.dumps(train))[4][0], train[4][0])


def test_a_damaged_recording_is_named_when_it_is_read(tmp_path):
    write_n_mnist(tmp_path)
    (tmp_path / "Train/3/00003.bin").write_bytes(b"1234")
    train = load_dataset("n_mnist", tmp_path, timesteps=3)
    assert train[2][1] == 2
    with pytest.raises(DataError, match=r"Train/3/00003\.bin is truncated"):
        train[3]


def test_cifar10_dvs_that_is_still_zipped(tmp_path):
    (tmp_path / "airplane.zip").touch()
    with pytest.raises(DataError, match=r"found no folder airplane .*unzip the ten files"):
        load_dataset("cifar10_dvs", tmp_path, timesteps=1)


def test_cifar10_dvs_without_a_class(tmp_path):
    write_cifar10_dvs(tmp_path, 1)
    (tmp_path / "frog/cifar10_frog_0.aedat").unlink()
    with pytest.raises(DataError, match=r"found no \.aedat files in .*frog"):
        load_dataset("cifar10_dvs", tmp_path, timesteps=1)


def test_cifar10_dvs_too_small_to_test(tmp_path):
    write_cifar10_dvs(tmp_path, 9)
    assert len(load_dataset("cifar10_dvs", tmp_path, timesteps=1)) == 90
    with pytest.raises(DataError, match="a class needs ten"):
        load_dataset("cifar10_dvs", tmp_path, "test", 1)


def test_n_mnist_that_is_still_zipped(tmp_path):
    with pytest.raises(DataError, match="is empty: put the folders Train and Test"):
        load_dataset("n_mnist", tmp_path, timesteps=1)
    (tmp_path / "Train.zip").touch()
    with pytest.raises(DataError, match=r"found no folder .*Train: unzip Train\.zip there"):
        load_dataset("n_mnist", tmp_path, timesteps=1)
    with pytest.raises(DataError, match=r"found no folder .*Test: put the files of .*Test\.zip"):
        load_dataset("n_mnist", tmp_path, "test", 1)


def test_n_mnist_without_a_digit(tmp_path):
    write_n_mnist(tmp_path, "01234567")
    with pytest.raises(DataError, match=r"found no \.bin files in .*Train/8"):
        load_dataset("n_mnist", tmp_path, timesteps=1)


HEAD = "class,startTime_usec,endTime_usec\n"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("user01_led.aedat", None, r"no recording .*user01_led\.aedat, which .*trials_to_train"),
        ("user01_led_labels.csv", None, r"cannot read .*user01_led_labels\.csv"),
        ("user01_led_labels.csv", "", "is no table of class, startTime_usec"),
        ("user01_led_labels.csv", HEAD + "1,5\n", "is no table of class, startTime_usec"),
        ("user01_led_labels.csv", HEAD + "1,5,x\n", r"labels\.csv is damaged .*'x'"),
        ("user01_led_labels.csv", HEAD + "12,5,6\n", r"has the line 12,5,6, .* from 1 to 11"),
        ("user01_led_labels.csv", HEAD + "1,6,5\n", r"has the line 1,6,5, .* a later end"),
        ("trials_to_train.txt", "\n", r"trials_to_train\.txt names no recordings"),
        ("gesture_mapping.csv", "a,b\n", r"gesture_mapping\.csv is no table of action, label"),
        ("gesture_mapping.csv", "action,label\nclap,2\n", "does not number its actions from 1"),
    ],
)
def test_dvs128_gesture_with_a_missing_or_damaged_file(tmp_path, file, content, message):
    write_gesture_set(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        load_dataset("dvs128_gesture", tmp_path, timesteps=1)


def test_dvs128_gesture_with_labels_of_another_recording(tmp_path):
    write_gesture_set(tmp_path)
    (tmp_path / "user01_led_labels.csv").write_text(HEAD + "1,900000,990000\n")
    train = load_dataset("dvs128_gesture", tmp_path, timesteps=1)
    with pytest.raises(DataError, match=r"user01_led\.aedat has no events from 900000 to 990000"):
        train[0]


@pytest.mark.data
def test_real_gestures(real_data):
    """The re-encoded recordings hold the events of the original ones, in both formats' counting."""
    root = real_data / "dvs128-objects"
    for split in ("train", "test"):
        dataset = load_dataset("dvs128_gesture", root / "aedat31", split, 1)
        assert len(dataset) == 7
        for (read, label), name in zip(dataset.samples, dataset.classes, strict=True):
            assert dataset.classes[label] == name
            original, part = read_aedat2(root / f"take1/{name}.aedat"), read()
            keys = [
                (128 * (128 * e.on + e.y) + e.x).astype(">u2").tobytes() for e in (original, part)
            ]
            at = keys[0].find(keys[1])
            assert at >= 0 and at % 2 == 0 and len(part) > 1000
            same = original.usec[at // 2 : at // 2 + len(part)]
            assert np.array_equal(np.diff(same), np.diff(part.usec))


@pytest.mark.data
def test_real_n_mnist(real_data, tmp_path):
    """Digits, standing upright: the frames of a one are narrow, and taller than wide."""
    for name in ("Train.zip", "Test.zip"):
        zipfile.ZipFile(real_data / "nmnist" / name).extractall(tmp_path)
    train, test = (load_dataset("n_mnist", tmp_path, split, 10) for split in ("train", "test"))
    assert (len(train), len(test)) == (640, 50)
    ones = torch.stack([frames.sum((0, 1)) for frames, label in train if label == 1]).mean(0)
    rows, columns = ones.sum(1), ones.sum(0)
    place = torch.arange(34.0)
    spread = [
        (share := part / part.sum()) @ (place - share @ place).square() for part in (rows, columns)
    ]
    assert spread[0] > 1.3 * spread[1]
