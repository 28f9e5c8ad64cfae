from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sthyper.selftuning.datasets import (
    NORMALISATIONS,
    Batches,
    Images,
    Vocabulary,
    batchify,
    bptt_chunks,
    load_cifar10,
    load_corpus,
    load_digit_images,
    load_fashion_mnist,
    load_mnist,
    make_corpus,
    normalise,
    read_idx,
    split,
)


def pixels(n: int, seed: int = 0) -> np.ndarray:
    """Images as ``N x H x W x C``."""
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def record(image: np.ndarray, label: int) -> bytes:
    """One record of the binary version: the label, then the planes of red, green and blue."""
    planes = [image[row, column, channel] for channel in range(3) for row in range(32) for column in range(32)]
    return bytes([label, *planes])


def write_binary(folder: Path, train_files: int = 5) -> tuple[np.ndarray, list[int]]:
    folder.mkdir(parents=True, exist_ok=True)
    x = pixels(2 * train_files + 3)
    y = [int(i) % 10 for i in range(3, len(x) + 3)]
    for i in range(train_files):
        block = b"".join(record(x[j], y[j]) for j in (2 * i, 2 * i + 1))
        (folder / f"data_batch_{i + 1}.bin").write_bytes(block)
    (folder / "test_batch.bin").write_bytes(b"".join(record(x[j], y[j]) for j in range(2 * train_files, len(x))))
    return x, y


class TestCifar:
    @pytest.mark.parametrize("where", ["folder", "parent", "archive"])
    def test_the_binary_version(self, tmp_path: Path, where: str) -> None:
        folder = tmp_path / "cifar-10-batches-bin"
        x, y = write_binary(folder)
        path = folder if where == "folder" else tmp_path
        if where == "archive":
            path = tmp_path / "cifar-10-binary.tar.gz"
            with tarfile.open(path, "w:gz") as archive:
                archive.add(folder, arcname="cifar-10-batches-bin")
        train, test = load_cifar10(path)
        assert (len(train), len(test)) == (10, 3)
        assert train.inputs.dtype == torch.float32
        assert train.labels.tolist() + test.labels.tolist() == y
        for images, expected in ((train, x[:10]), (test, x[10:])):
            assert torch.equal(images.inputs, torch.tensor(expected).permute(0, 3, 1, 2) / 255)
        assert train.classes[3] == "cat"

    def test_some_of_the_training_files_are_enough(self, tmp_path: Path) -> None:
        write_binary(tmp_path, train_files=2)
        assert len(load_cifar10(tmp_path)[0]) == 4

    def test_arrays(self, tmp_path: Path) -> None:
        x, path = pixels(7), tmp_path / "some.npz"
        y = np.arange(7, dtype=np.uint8)
        np.savez(path, x_train=x[:5], y_train=y[:5], x_test=x[5:], y_test=y[5:], classes=np.array(list("abcdefg")))
        train, test = load_cifar10(path)
        assert torch.equal(train.inputs, torch.tensor(x[:5]).permute(0, 3, 1, 2) / 255)
        assert test.labels.tolist() == [5, 6]
        assert test.classes == tuple("abcdefg")
        np.savez(path, x_train=x[:5], y_train=y[:5].reshape(5, 1), x_test=x[5:], y_test=y[5:])
        assert load_cifar10(path)[0].labels.tolist() == [0, 1, 2, 3, 4]
        assert load_cifar10(path)[0].classes[9] == "truck"

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": 1}))
        for path in (folder, tmp_path):
            with pytest.raises(ValueError, match=r"pickles.*binary version"):
                load_cifar10(path)
        path = tmp_path / "objects.npz"
        objects = np.array([Path("a")], dtype=object)
        np.savez(path, allow_pickle=True, x_train=objects, y_train=objects, x_test=objects, y_test=objects)
        with pytest.raises(ValueError, match="allow_pickle=False"):
            load_cifar10(path)

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            load_cifar10(tmp_path / "none")
        with pytest.raises(FileNotFoundError, match="no data_batch_1.bin"):
            load_cifar10(tmp_path)
        text = tmp_path / "text"
        text.write_text("text")
        with pytest.raises(ValueError, match="neither"):
            load_cifar10(text)
        write_binary(tmp_path / "a")
        (tmp_path / "a" / "test_batch.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"no test_batch\.bin"):
            load_cifar10(tmp_path / "a")
        write_binary(tmp_path / "b")
        short = tmp_path / "b" / "data_batch_2.bin"
        short.write_bytes(short.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"6145 bytes, which is no multiple of 3073"):
            load_cifar10(tmp_path / "b")
        write_binary(tmp_path / "c")
        wrong = tmp_path / "c" / "data_batch_3.bin"
        wrong.write_bytes(b"\x0b" + wrong.read_bytes()[1:])
        with pytest.raises(ValueError, match=r"c: labels must lie between 0 and 9, got \d to 11"):
            load_cifar10(tmp_path / "c")
        with tarfile.open(tmp_path / "empty.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo("x/data_batch_1"), io.BytesIO())
        with pytest.raises(ValueError, match="binary version"):
            load_cifar10(tmp_path / "empty.tar")
        write_binary(tmp_path / "d")
        with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "d", arcname="d")
        for name in ("whole.tar.gz", "a.npz"):
            path = tmp_path / name
            if name == "a.npz":
                np.savez(path, x_train=pixels(9), y_train=[1] * 9, x_test=pixels(9), y_test=[1] * 9)
            content = bytearray(path.read_bytes())
            # Among the numbers of the arrays, and in the checksum at the end.
            for place in (len(content) // 4, -8):
                content[place] ^= 1
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                load_cifar10(path)
        np.savez(tmp_path / "few.npz", x_train=pixels(1))
        with pytest.raises(ValueError, match=r"lacks the arrays \['y_train', 'x_test', 'y_test'\]"):
            load_cifar10(tmp_path / "few.npz")
        floats = pixels(1) / 255
        np.savez(tmp_path / "floats.npz", x_train=floats, y_train=[1], x_test=floats, y_test=[1])
        with pytest.raises(ValueError, match="x_train must be uint8"):
            load_cifar10(tmp_path / "floats.npz")


def idx(array: np.ndarray, code: int) -> bytes:
    big = array.astype(array.dtype.newbyteorder(">"))
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + big.tobytes()


class TestIdx:
    @pytest.mark.parametrize(
        ("code", "dtype"), [(8, "u1"), (9, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
    )
    @pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4)])
    def test_types_and_shapes(self, tmp_path: Path, code: int, dtype: str, shape: tuple[int, ...]) -> None:
        array = (np.arange(np.prod(shape)) * 11 - 3 * (dtype != "u1")).astype(dtype).reshape(shape)
        path = tmp_path / "file"
        for content in (idx(array, code), gzip.compress(idx(array, code))):
            path.write_bytes(content)
            read = read_idx(path)
            assert read.numpy().dtype == np.dtype(dtype)
            np.testing.assert_array_equal(read.numpy(), array)

    def test_errors(self, tmp_path: Path) -> None:
        path, good = tmp_path / "file", idx(np.zeros((2, 3), dtype=np.uint8), 8)
        for content, message in (
            (b"", "no idx file"),
            (b"\x93NUMPY", "no idx file"),
            (b"\0\0\x07\x01" + good[4:], "no idx file"),
            (good[:-1], r"damaged: 17 bytes do not hold \[2, 3\]"),
            (good + b"\0", "damaged"),
            (good[:6], "damaged"),
            (gzip.compress(good)[:-6], "damaged"),
        ):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=message):
                read_idx(path)

    def write(self, folder: Path, ending: str = "", dash: str = "-") -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        arrays = {}
        for part, n in (("train", 5), ("t10k", 3)):
            arrays[f"{part}-images{dash}idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
            arrays[f"{part}-labels{dash}idx1-ubyte"] = rng.integers(0, 10, n, dtype=np.uint8)
        for name, array in arrays.items():
            content = idx(array, 8)
            (folder / (name + ending)).write_bytes(gzip.compress(content) if ending else content)
        return arrays

    @pytest.mark.parametrize("load", [load_mnist, load_fashion_mnist])
    @pytest.mark.parametrize(("ending", "dash"), [("", "-"), (".gz", "-"), ("", ".")])
    def test_mnist(self, tmp_path: Path, load: type[load_mnist], ending: str, dash: str) -> None:
        x_train, y_train, x_test, y_test = self.write(tmp_path, ending, dash).values()
        train, test = load(tmp_path)
        assert train.inputs.shape == (5, 1, 28, 28)
        np.testing.assert_array_equal((train.inputs[:, 0] * 255).round().numpy(), x_train)
        np.testing.assert_array_equal((test.inputs[:, 0] * 255).round().numpy(), x_test)
        np.testing.assert_array_equal(torch.cat([train.labels, test.labels]).numpy(), np.append(y_train, y_test))
        assert train.classes[7] == ("7" if load is load_mnist else "Sneaker")

    def test_missing_and_exchanged(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        labels = tmp_path / "t10k-labels-idx1-ubyte"
        content = labels.read_bytes()
        labels.unlink()
        with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
            load_mnist(tmp_path)
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
        labels.write_bytes(content)
        with pytest.raises(ValueError, match="images must be uint8 of N x H x W"):
            load_mnist(tmp_path)


class TestImages:
    def test_digits(self) -> None:
        digits = load_digit_images()
        assert digits.inputs.shape == (1797, 1, 8, 8)
        assert (digits.inputs.min(), digits.inputs.max()) == (0, 1)
        noise = load_digit_images(0.3).inputs - digits.inputs
        assert noise.std() == pytest.approx(0.3, rel=0.02)
        assert torch.equal(load_digit_images(0.3).inputs, load_digit_images(0.3).inputs)
        assert not torch.equal(load_digit_images(0.3, seed=1).inputs, load_digit_images(0.3).inputs)
        with pytest.raises(ValueError, match=r"noise must not be negative, got -0\.1"):
            load_digit_images(-0.1)

    def test_parts(self) -> None:
        digits = load_digit_images()
        train, validation, test = digits.split([300, 0.25, -1], seed=3)
        assert [len(part) for part in (train, validation, test)] == [300, 449, 1048]
        pairs = {
            (x.numpy().tobytes(), int(y))
            for part in (train, validation, test)
            for x, y in zip(part.inputs, part.labels, strict=True)
        }
        assert pairs == {(x.numpy().tobytes(), int(y)) for x, y in zip(digits.inputs, digits.labels, strict=True)}
        assert torch.equal(digits.split([300], seed=3)[0].inputs, train.inputs)
        assert not torch.equal(digits.split([300], seed=4)[0].inputs, train.inputs)

    def test_split(self) -> None:
        parts = split(10, [0.8, 0.2])
        assert sorted(torch.cat(parts).tolist()) == list(range(10))
        assert [len(part) for part in split(10_000, [0.8, 0.2])] == [8000, 2000]
        assert [len(part) for part in split(10, [0.7, 0.1])] == [7, 1]
        for sizes, message in (
            ([8, 3], "parts of"),
            ([10, -1], "parts of"),
            ([0.01], "parts of"),
            ([-1, -1], "only one"),
        ):
            with pytest.raises(ValueError, match=message):
                split(10, sizes)

    def test_other_types(self) -> None:
        digits = load_digit_images()[:4].to(dtype=torch.float64)
        assert digits.inputs.dtype == torch.float64
        assert digits.labels.dtype == torch.int64
        assert digits[torch.tensor([2, 0])].labels.tolist() == [2, 0]

    def test_errors(self) -> None:
        x, y = torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0])
        with pytest.raises(ValueError, match="four axes"):
            Images(x[0], y, ("a", "b"))
        with pytest.raises(ValueError, match="3 images, but labels of shape"):
            Images(x, y[:2], ("a", "b"))
        with pytest.raises(ValueError, match="between 0 and 0, got 0 to 1"):
            Images(x, y, ("a",))

    def test_normalise(self) -> None:
        mean, std = NORMALISATIONS["cifar10"]
        x = torch.rand(2, 3, 4, 4)
        for channel in range(3):
            expected = (x[:, channel] - mean[channel]) / std[channel]
            torch.testing.assert_close(normalise(x, mean, std)[:, channel], expected)
        with pytest.raises(ValueError, match="each of 3 channels, got 1 and 1"):
            normalise(x, *NORMALISATIONS["mnist"])


class TestBatches:
    def test_every_example_once_in_a_new_order_each_time(self) -> None:
        x = torch.arange(10)
        batches = Batches(x, -x, batch_size=4)
        epochs = [[tuple(part) for part in batches] for _ in range(2)]
        assert [len(part[0]) for part in epochs[0]] == [4, 4, 2]
        orders = [torch.cat([part[0] for part in epoch]).tolist() for epoch in epochs]
        assert sorted(orders[0]) == sorted(orders[1]) == x.tolist()
        assert orders[0] != orders[1] != x.tolist()
        assert all(torch.equal(a, -b) for epoch in epochs for a, b in epoch)

    def test_options(self) -> None:
        x = torch.arange(10)
        assert [part.tolist() for (part,) in Batches(x, batch_size=4, shuffle=False)] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9],
        ]
        short = Batches(x, batch_size=4, drop_last=True)
        assert len(short) == len(list(short)) == 2
        assert len(Batches(x, batch_size=4)) == 3
        orders = [torch.cat([p for (p,) in Batches(x, batch_size=4, seed=seed)]).tolist() for seed in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]

    def test_orders_go_on_with_the_state_of_the_generator(self) -> None:
        x = torch.arange(10)
        batches, other = Batches(x, batch_size=10), Batches(x, batch_size=10, seed=5)
        list(batches)
        other.generator.set_state(batches.generator.get_state())
        assert torch.equal(next(iter(batches))[0], next(iter(other))[0])
        assert len(batches.dataset) == 10

    def test_errors(self) -> None:
        x = torch.arange(3)
        for tensors, size, drop, message in (
            ((), 1, False, "at least one"),
            ((x, x[:2]), 1, False, r"lengths \[3, 2\]"),
            ((x,), 0, False, "batch_size must be at least 1, got 0"),
            ((x,), 4, True, "no batch of 4 in 3"),
            ((x[:0],), 4, False, "no batch of 4 in 0"),
        ):
            with pytest.raises(ValueError, match=message):
                Batches(*tensors, batch_size=size, drop_last=drop)


class TestText:
    LINES = ("the cat sat", "the dog ran", "the cat ran")

    def test_vocabulary(self) -> None:
        vocabulary = Vocabulary.of(self.LINES)
        assert vocabulary.words == ["<eos>", "the", "cat", "ran", "sat", "dog", "<unk>"]
        assert len(vocabulary) == 7
        numbers = vocabulary.encode(["the bird ran", "cat"])
        assert numbers.tolist() == [1, 6, 3, 0, 2, 0]
        assert vocabulary.decode(numbers) == "the <unk> ran <eos> cat <eos>"
        assert Vocabulary.of(self.LINES, min_count=2).words == ["<eos>", "the", "cat", "ran", "<unk>"]
        assert Vocabulary(["a", "<unk>", "b"]).encode(["b c"]).tolist() == [2, 1]
        with pytest.raises(ValueError, match=r"repeated: \['a'\]"):
            Vocabulary(["a", "b", "a"])
        with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
            Vocabulary.of(self.LINES, min_count=0)

    @pytest.mark.parametrize("names", ["{}.txt", "ptb.{}.txt", "wiki.{}.tokens"])
    def test_folder(self, tmp_path: Path, names: str) -> None:
        for name, text in (("train", "a b\nb b\n"), ("valid", "b c\n"), ("test", "a\n")):
            (tmp_path / names.format(name)).write_text(text)
        (tmp_path / "README").write_text("no part")
        corpus = load_corpus(tmp_path)
        assert corpus.vocabulary.words == ["<eos>", "b", "a", "<unk>"]
        assert corpus.train.tolist() == [2, 1, 0, 1, 1, 0]
        assert corpus.validation.tolist() == [1, 3, 0]
        assert corpus.test.tolist() == [2, 0]

    def test_file(self, tmp_path: Path) -> None:
        path = tmp_path / "text.txt"
        path.write_text("".join(f"word{i}\n" for i in range(10)))
        corpus = load_corpus(path)
        assert [len(p) for p in (corpus.train, corpus.validation, corpus.test)] == [16, 2, 2]
        assert corpus.vocabulary.decode(corpus.train[-2:]) == "word7 <eos>"
        assert len(load_corpus(path, shares=(0.5, 0.3)).train) == 10
        assert len(load_corpus(path, min_count=2).vocabulary) == 2

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            load_corpus(tmp_path / "none")
        with pytest.raises(FileNotFoundError, match=r"no train\.txt"):
            load_corpus(tmp_path)
        for name in ("train.txt", "valid.txt", "test.txt"):
            (tmp_path / name).write_text("a\n")
        (tmp_path / "validation.txt").write_text("a\n")
        with pytest.raises(ValueError, match=r"several files may be the valid part: \['valid.txt', 'validation.txt'\]"):
            load_corpus(tmp_path)
        with pytest.raises(ValueError, match="shares must be positive"):
            load_corpus(tmp_path / "train.txt", shares=(0.9, 0.1))
        with pytest.raises(ValueError, match="the train part of the text is empty"):
            load_corpus(tmp_path / "train.txt", shares=(0.1, 0.1))
        with pytest.raises(ValueError, match="the test part of the text is empty"):
            make_corpus(["a"], ["a"], [])

    def test_streams_and_chunks(self) -> None:
        streams = batchify(torch.arange(23), 2)
        assert streams.tolist() == [list(range(11)), list(range(11, 22))]
        chunks = list(bptt_chunks(streams, 4))
        assert [words[0].tolist() for words, _ in chunks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        for words, following in chunks:
            assert torch.equal(following, words + 1)
        for size, message in ((0, "batch_size must be at least 1"), (12, "23 words are too few for 12 streams")):
            with pytest.raises(ValueError, match=message):
                batchify(torch.arange(23), size)
        with pytest.raises(ValueError, match="length must be at least 1, got 0"):
            next(bptt_chunks(streams, 0))

    def test_varied_lengths(self) -> None:
        streams = batchify(torch.arange(40_000), 2)

        def lengths(seed: int) -> list[int]:
            return [words.shape[1] for words, _ in bptt_chunks(streams, 30, torch.Generator().manual_seed(seed))]

        assert lengths(0) == lengths(0) != lengths(1)
        assert sum(lengths(0)) == 19_999
        inner = torch.tensor(lengths(0)[:-1], dtype=torch.float64)
        assert inner.mean() == pytest.approx(29.25 - 0.5, abs=0.8)
        assert 2 * (inner < 23).double().mean() == pytest.approx(0.1 + 2 * 0.95 * 0.08, abs=0.1)
        assert min(int(inner.min()), 5) == 5
