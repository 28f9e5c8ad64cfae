"""The data sets of the papers' experiments, read from files that are there already, and what training needs of them.

Nothing is downloaded and nothing is unpickled: CIFAR-10 comes from its binary version or an ``.npz`` file, MNIST and
Fashion-MNIST from their idx files, text from plain text files.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from sthyper.selftuning._text import Corpus, Vocabulary, batchify, bptt_chunks, load_corpus, make_corpus

__all__ = [
    "NORMALISATIONS",
    "Batches",
    "Corpus",
    "Images",
    "Vocabulary",
    "batchify",
    "bptt_chunks",
    "load_cifar10",
    "load_corpus",
    "load_digit_images",
    "load_fashion_mnist",
    "load_mnist",
    "make_corpus",
    "normalise",
    "read_idx",
    "split",
]

NORMALISATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.0,), (1.0,)),
}
"""Mean and standard deviation of each channel, of pixels in [0, 1]."""

_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS = tuple("0123456789")
_CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_CIFAR_TEST = "test_batch.bin"
_CIFAR_RECORD = 1 + 3 * 32 * 32
_IDX_TYPES = {
    0x08: torch.uint8,
    0x09: torch.int8,
    0x0B: torch.int16,
    0x0C: torch.int32,
    0x0D: torch.float32,
    0x0E: torch.float64,
}
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Args:
        inputs: Pixels in [0, 1] (``N x C x H x W``, floating point).
        labels: Number of the class of each (``N``, int64).
        classes: Names of the classes.

    Raises:
        ValueError: If these do not fit.
    """

    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.inputs.dim() != 4:
            raise ValueError(f"inputs must have four axes (N x C x H x W), got shape {tuple(self.inputs.shape)}")
        if self.labels.shape != self.inputs.shape[:1]:
            raise ValueError(f"there are {len(self.inputs)} images, but labels of shape {tuple(self.labels.shape)}")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(
                f"labels must lie between 0 and {len(self.classes) - 1}, got {int(self.labels.min())} to "
                f"{int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Images:
        """Return some of them."""
        return replace(self, inputs=self.inputs[index], labels=self.labels[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Images:
        """Return them on another device, or with pixels of another type."""
        inputs = self.inputs.to(device=device, dtype=dtype)
        return replace(self, inputs=inputs, labels=self.labels.to(device=device))

    def split(self, sizes: Sequence[int | float], seed: int = 0) -> tuple[Images, ...]:
        """Cut them into parts at random; see :func:`split`."""
        return tuple(self[part.to(self.labels.device)] for part in split(len(self), sizes, seed))


def split(n: int, sizes: Sequence[int | float], seed: int = 0) -> tuple[Tensor, ...]:
    """Cut ``n`` examples into parts at random, the same for the same arguments.

    Args:
        n: Number of examples.
        sizes: Length of each part: whole numbers, or shares of the whole; one may be -1 for all that is left.
        seed: Another seed gives another split.

    Returns:
        The indices of the examples of each part.

    Raises:
        ValueError: If the parts are more than the whole, or one is empty.
    """
    if sum(size == -1 for size in sizes) > 1:
        raise ValueError(f"sizes: only one may be -1, got {list(sizes)}")
    lengths = [size if isinstance(size, int) else math.floor(size * n + 1e-6) for size in sizes]
    rest = n - sum(length for length in lengths if length != -1)
    lengths = [rest if length == -1 else length for length in lengths]
    if rest < 0 or any(length < 1 for length in lengths):
        raise ValueError(f"sizes {list(sizes)} make parts of {lengths} examples from {n}; all must have one at least")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return tuple(torch.split(order[: sum(lengths)], lengths))


def normalise(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images with mean 0 and standard deviation 1 in each channel.

    Args:
        inputs: Images (``... x C x H x W``).
        mean: Mean of each channel; see :data:`NORMALISATIONS`.
        std: Standard deviation of each channel.

    Raises:
        ValueError: If there is not one for each channel.
    """
    if not len(mean) == len(std) == inputs.shape[-3]:
        raise ValueError(
            f"mean and std must have a number for each of {inputs.shape[-3]} channels, got {len(mean)} and {len(std)}"
        )
    centre, spread = inputs.new_tensor(mean).reshape(-1, 1, 1), inputs.new_tensor(std).reshape(-1, 1, 1)
    return (inputs - centre) / spread


class Batches:
    """Batches of tensors that belong together, in a new random order each time they are gone through.

    Quicker than a :class:`~torch.utils.data.DataLoader`, which picks examples one by one.

    Args:
        tensors: Tensors of ``N x ...``.
        batch_size: Number of examples of a batch.
        shuffle: Whether the order is random.
        drop_last: Whether a last batch with fewer examples is left out.
        seed: Seed of the orders, which ``generator`` draws.

    Raises:
        ValueError: If the tensors have different lengths, or there would be no batch.
    """

    def __init__(
        self, *tensors: Tensor, batch_size: int, shuffle: bool = True, drop_last: bool = False, seed: int = 0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        lengths = [len(tensor) for tensor in tensors]
        if not lengths or len(set(lengths)) > 1:
            raise ValueError(f"tensors must be at least one, all of the same length, got lengths {lengths}")
        if lengths[0] < (batch_size if drop_last else 1):
            raise ValueError(f"there is no batch of {batch_size} in {lengths[0]} examples")
        self.tensors = tensors
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def dataset(self) -> TensorDataset:
        """The examples, as loaders of torch have them."""
        return TensorDataset(*self.tensors)

    def __len__(self) -> int:
        n = len(self.tensors[0])
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        n = len(self.tensors[0])
        order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        for part in torch.split(order.to(self.tensors[0].device), self.batch_size)[: len(self)]:
            yield tuple(tensor[part] for tensor in self.tensors)


# ---- CIFAR-10 ------------------------------------------------------------------------------------------------


def load_cifar10(path: str | Path) -> tuple[Images, Images]:
    """Read CIFAR-10, or a part of it.

    Args:
        path: The folder with the files of the "binary version" (``data_batch_1.bin`` ...), its ``.tar.gz`` archive, or
            an ``.npz`` file with uint8 arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` (images ``N x 32 x 32 x
            3``) and, if it likes, ``classes``.

    Returns:
        Training and test images (``N x 3 x 32 x 32``, float32 in [0, 1]).

    Raises:
        FileNotFoundError: If there is nothing, or a file is missing.
        ValueError: If a file is none of these, damaged, or of the pickled Python version.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_dir():
        files = _cifar_files(path)
        train, test = [file.read_bytes() for file in files[:-1]], files[-1].read_bytes()
    else:
        try:
            if zipfile.is_zipfile(path):
                return _cifar_npz(path)
            if not tarfile.is_tarfile(path):
                raise ValueError(f"{path} is neither an .npz file nor an archive of the binary version of CIFAR-10")
            train, test = _cifar_archive(path)
        except (EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    return _cifar_records(train, path), _cifar_records([test], path)


def _cifar_files(folder: Path) -> list[Path]:
    for place in (folder, folder / "cifar-10-batches-bin"):
        train = [place / name for name in _CIFAR_TRAIN if (place / name).exists()]
        if train:
            if not (place / _CIFAR_TEST).exists():
                raise FileNotFoundError(f"there is no {_CIFAR_TEST} in {place}")
            return [*train, place / _CIFAR_TEST]
    for place in (folder, folder / "cifar-10-batches-py"):
        if (place / "data_batch_1").exists():
            raise ValueError(
                f"{place} holds the Python version of CIFAR-10, whose files are pickles, which are not read; take the "
                "binary version (cifar-10-binary.tar.gz)"
            )
    raise FileNotFoundError(f"there is no {_CIFAR_TRAIN[0]} in {folder}")


def _cifar_archive(path: Path) -> tuple[list[bytes], bytes]:
    contents: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in (*_CIFAR_TRAIN, _CIFAR_TEST):
                file = archive.extractfile(member)
                if file is not None:
                    contents[name] = file.read()
        # Checksums of compressed files stand at their end.
        while archive.fileobj is not None and archive.fileobj.read(2**20):
            pass
    train = [contents[name] for name in _CIFAR_TRAIN if name in contents]
    if not train or _CIFAR_TEST not in contents:
        raise ValueError(f"{path} has no {_CIFAR_TRAIN[0]} or no {_CIFAR_TEST}; take the binary version of CIFAR-10")
    return train, contents[_CIFAR_TEST]


def _cifar_records(blocks: Sequence[bytes], path: Path) -> Images:
    for block in blocks:
        if not block or len(block) % _CIFAR_RECORD:
            raise ValueError(f"{path}: a file has {len(block)} bytes, which is no multiple of {_CIFAR_RECORD}")
    records = torch.frombuffer(bytearray(b"".join(blocks)), dtype=torch.uint8).reshape(-1, _CIFAR_RECORD)
    return _images(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], _CIFAR_CLASSES, path)


def _cifar_npz(path: Path) -> tuple[Images, Images]:
    import numpy as np

    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]
        if missing:
            raise ValueError(f"{path} lacks the arrays {missing}; it has {sorted(arrays)}")
        classes = tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else _CIFAR_CLASSES
        parts = []
        for part in ("train", "test"):
            x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
            if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3:
                raise ValueError(f"{path}: x_{part} must be uint8 of N x 32 x 32 x 3, got {x.dtype} of {x.shape}")
            pixels = torch.from_numpy(x).permute(0, 3, 1, 2)
            parts.append(_images(pixels, torch.from_numpy(y.reshape(-1).astype(np.int64)), classes, path))
    return parts[0], parts[1]


def _images(pixels: Tensor, labels: Tensor, classes: tuple[str, ...], path: Path) -> Images:
    """Return images from uint8 pixels; the message of an error names the file."""
    try:
        return Images(pixels.float().div(255).contiguous(), labels.long(), classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# ---- MNIST and the like ---------------------------------------------------------------------------------------


def read_idx(path: str | Path) -> Tensor:
    """Read a tensor from a file in the idx format, compressed with gzip or not.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no idx file, or damaged.
    """
    path = Path(path).expanduser()
    content = path.read_bytes()
    if content[:2] == _GZIP:
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read()
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(f"{path} is no idx file: it begins with {content[:4].hex()}")
    dtype, n_axes = _IDX_TYPES[content[2]], content[3]
    start = 4 + 4 * n_axes
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(n_axes)]
    size = dtype.itemsize
    if len(content) != start + size * math.prod(shape):
        raise ValueError(f"{path} is damaged: {len(content)} bytes do not hold {shape} numbers of {size} bytes each")
    raw = torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(-1, size)
    # The format has the high byte first.
    return raw.flip(1).contiguous().view(dtype).reshape(shape)


def load_mnist(folder: str | Path) -> tuple[Images, Images]:
    """Read MNIST from its four files, ``train-images-idx3-ubyte`` and so on, with or without ``.gz``.

    Args:
        folder: Where they are.

    Returns:
        Training and test images (``N x 1 x 28 x 28``, float32 in [0, 1]).

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one is damaged.
    """
    return _load_idx(Path(folder).expanduser(), _DIGITS)


def load_fashion_mnist(folder: str | Path) -> tuple[Images, Images]:
    """Read Fashion-MNIST, whose files have the names of MNIST's; see :func:`load_mnist`."""
    return _load_idx(Path(folder).expanduser(), _FASHION_CLASSES)


def _load_idx(folder: Path, classes: tuple[str, ...]) -> tuple[Images, Images]:
    parts = []
    for part in ("train", "t10k"):
        pixels, labels = (_idx_of(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        if pixels.dim() != 3 or pixels.dtype != torch.uint8:
            raise ValueError(f"{folder}: images must be uint8 of N x H x W, got {pixels.dtype} of {list(pixels.shape)}")
        parts.append(_images(pixels.unsqueeze(1), labels, classes, folder))
    return parts[0], parts[1]


def _idx_of(folder: Path, name: str) -> Tensor:
    # Some unpackers write a dot for the dash before "idx".
    names = [name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"]
    found = next((folder / n for n in names if (folder / n).exists()), None)
    if found is None:
        raise FileNotFoundError(f"there is no {name} or {name}.gz in {folder}")
    return read_idx(found)


def load_digit_images(noise: float = 0.0, seed: int = 0) -> Images:
    """Return the 1797 digits that come with scikit-learn.

    Args:
        noise: Standard deviation of normal noise that is added to the pixels, to make the task harder.
        seed: Seed of the noise.

    Returns:
        Images of ``1 x 8 x 8``, float32 in [0, 1] before the noise.

    Raises:
        ValueError: If ``noise`` is negative.
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    if not noise >= 0:
        raise ValueError(f"noise must not be negative, got {noise!r}")
    x, y = load_digits(return_X_y=True)
    inputs = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    inputs += noise * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed))
    return Images(inputs, torch.as_tensor(y, dtype=torch.int64), _DIGITS)
