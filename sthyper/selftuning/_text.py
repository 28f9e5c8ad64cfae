"""Text for language models: words as numbers, streams side by side, and chunks of them in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Corpus", "Vocabulary", "batchify", "bptt_chunks", "load_corpus", "make_corpus"]

UNKNOWN = "<unk>"
END = "<eos>"
_PARTS = (("train",), ("valid", "validation", "val"), ("test",))


class Vocabulary:
    """Words and their numbers.

    Args:
        words: The words, without repetition; ``<unk>`` is added if it is missing, for all other words.

    Raises:
        ValueError: If a word is repeated.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = list(words)
        if UNKNOWN not in self.words:
            self.words.append(UNKNOWN)
        self._numbers = {word: i for i, word in enumerate(self.words)}
        if len(self._numbers) != len(self.words):
            repeated = [word for word, count in Counter(self.words).items() if count > 1]
            raise ValueError(f"words are repeated: {repeated[:5]}")

    @classmethod
    def of(cls, lines: Iterable[str], min_count: int = 1) -> Vocabulary:
        """Return the words of a text, the most frequent first, and ``<eos>`` for the end of a line.

        Args:
            lines: Lines of words with blanks between them.
            min_count: Words that are rarer become ``<unk>``.

        Raises:
            ValueError: If ``min_count`` is below 1.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}")
        counts = Counter(word for line in lines for word in line.split())
        counts.pop(END, None)
        # Of equally frequent words the one that came first comes first.
        return cls([END, *(word for word, count in counts.most_common() if count >= min_count)])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._numbers

    def encode(self, lines: Iterable[str]) -> Tensor:
        """Return the numbers of the words of a text, with ``<eos>`` after each line (int64)."""
        unknown = self._numbers[UNKNOWN]
        end = [END] if END in self else []
        return torch.tensor(
            [self._numbers.get(word, unknown) for line in lines for word in [*line.split(), *end]], dtype=torch.int64
        )

    def decode(self, numbers: Tensor | Sequence[int]) -> str:
        """Return the words of numbers, with blanks between them."""
        return " ".join(self.words[int(i)] for i in numbers)


@dataclass(frozen=True)
class Corpus:
    """A text in three parts.

    Args:
        train: Numbers of the words to train on (int64, one axis).
        validation: Those to choose hyperparameters on.
        test: Those to report on.
        vocabulary: The words.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    vocabulary: Vocabulary


def make_corpus(train: Sequence[str], validation: Sequence[str], test: Sequence[str], min_count: int = 1) -> Corpus:
    """Return a corpus from lines of text; its vocabulary is that of the training part.

    Args:
        train: Lines to train on.
        validation: Lines to choose hyperparameters on.
        test: Lines to report on.
        min_count: See :meth:`Vocabulary.of`.

    Raises:
        ValueError: If a part is empty.
    """
    vocabulary = Vocabulary.of(train, min_count)
    parts = {"train": train, "validation": validation, "test": test}
    encoded = {name: vocabulary.encode(lines) for name, lines in parts.items()}
    for name, numbers in encoded.items():
        if not len(numbers):
            raise ValueError(f"the {name} part of the text is empty")
    return Corpus(**encoded, vocabulary=vocabulary)


def load_corpus(path: str | Path, min_count: int = 1, shares: tuple[float, float] = (0.8, 0.1)) -> Corpus:
    """Read a text, in lines of words with blanks between them (UTF-8).

    Args:
        path: A folder with the files ``train.txt``, ``valid.txt`` and ``test.txt`` (or ``ptb.train.txt`` and so on, or
            ``wiki.train.tokens`` and so on), or one file, whose lines are cut into three parts in their order.
        min_count: See :meth:`Vocabulary.of`.
        shares: Shares of the lines of one file that are for training and for validation.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If several files suit, a part is empty, or ``shares`` leave nothing for the test.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        train, validation, test = (_part(path, names) for names in _PARTS)
        return make_corpus(train, validation, test, min_count)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if not (min(shares) > 0 and sum(shares) < 1):
        raise ValueError(f"shares must be positive and leave something for the test, got {shares}")
    lines = path.read_text(encoding="utf-8").splitlines()
    first, second = round(shares[0] * len(lines)), round(sum(shares) * len(lines))
    return make_corpus(lines[:first], lines[first:second], lines[second:], min_count)


def _part(folder: Path, names: tuple[str, ...]) -> list[str]:
    found = [p for p in sorted(folder.iterdir()) if p.is_file() and set(p.name.lower().split(".")) & set(names)]
    if not found:
        raise FileNotFoundError(f"there is no {names[0]}.txt in {folder}")
    if len(found) > 1:
        raise ValueError(f"several files may be the {names[0]} part: {[p.name for p in found]}; leave one")
    return found[0].read_text(encoding="utf-8").splitlines()


def batchify(tokens: Tensor, batch_size: int) -> Tensor:
    """Cut a text into equally long streams that are read side by side.

    Args:
        tokens: Numbers of words (one axis).
        batch_size: Number of streams; the few words left over are dropped.

    Returns:
        The streams (``batch_size x length``).

    Raises:
        ValueError: If a stream would have fewer than two words.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    length = len(tokens) // batch_size
    if length < 2:
        raise ValueError(f"{len(tokens)} words are too few for {batch_size} streams of two words at least")
    return tokens[: length * batch_size].reshape(batch_size, length)


def bptt_chunks(
    streams: Tensor, length: int, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield chunks of streams for backpropagation through a limited time.

    Args:
        streams: What :func:`batchify` returned (``B x length``).
        length: Words of a chunk; the last may have fewer.
        generator: If given, lengths vary around ``length`` (half of it once in twenty times, with a standard deviation
            of 5, at least 5), so that chunks begin elsewhere in each epoch.

    Yields:
        Words and the words after each of them (both ``B x T``).

    Raises:
        ValueError: If ``length`` is below 1.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    start, end = 0, streams.shape[1] - 1
    while start < end:
        n = length
        if generator is not None:
            base = length if float(torch.rand((), generator=generator)) < 0.95 else length / 2
            n = max(5, int(base + 5 * float(torch.randn((), generator=generator))))
        stop = min(start + n, end)
        yield streams[:, start:stop], streams[:, start + 1 : stop + 1]
        start = stop
