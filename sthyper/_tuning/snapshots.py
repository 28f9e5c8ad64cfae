"""Files with the state of an experiment, so that a resumed tuner goes through the end of the journal only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sthyper.constants import ST_SNAPSHOTS_DIRNAME

__all__ = ["SNAPSHOT_VERSION", "NotPlain", "decode", "encode", "read_snapshots", "write_snapshot"]

logger = logging.getLogger(__name__)

SNAPSHOT_VERSION = 1
KEPT = 3
"""Number of snapshots that are kept."""

_NAME = re.compile(r"(\d{6,})\.(json|pt)\Z")
_HEAD = re.compile(rb'\{"version":(\d+),"checksum":"([0-9a-f]+)","content":')
_TUPLE, _ITEMS, _FLOAT, _TENSOR = "st_tuple", "st_items", "st_float", "st_tensor"
_TAGS = frozenset({_TUPLE, _ITEMS, _FLOAT, _TENSOR})
_CHUNK = 100


class NotPlain(TypeError):
    """A state holds something that is neither a plain value nor a container nor a tensor; says where."""


class _Unusable(Exception):
    """A snapshot cannot be used; says why."""


# ---- what is in a file -----------------------------------------------------------------------------------


def encode(value: Any, tensors: list[Any], name: str = "") -> Any:
    """Return a copy of a state that JSON can hold and that comes back as it was: tuples, NaN and tensors too.

    Args:
        value: Plain values, lists, tuples, dicts and tensors.
        tensors: Copies of the tensors are appended here.
        name: What the state is called, for errors.

    Raises:
        NotPlain: If there is anything else in it.
    """
    try:
        return _encode(value, tensors)
    except NotPlain as error:
        raise NotPlain(f"{name}{error}") from None


def _encode(value: Any, tensors: list[Any]) -> Any:
    kind = value.__class__
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return value if math.isfinite(value) else {_FLOAT: repr(value)}
    if kind is dict:
        return _encode_dict(value, tensors)
    if kind is list or kind is tuple:
        items = []
        for number, item in enumerate(value):
            try:
                items.append(_encode(item, tensors))
            except NotPlain as error:
                raise NotPlain(f"[{number}]{error}") from None
        return items if kind is list else {_TUPLE: items}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensors.append(value.detach().cpu().clone())
        return {_TENSOR: len(tensors) - 1}
    raise NotPlain(f" = {value!r} of type {kind.__module__}.{kind.__qualname__}")


def _encode_dict(value: dict[Any, Any], tensors: list[Any]) -> Any:
    result = {}
    plain = True
    for key, item in value.items():
        plain = plain and key.__class__ is str and key not in _TAGS
        try:
            result[key] = _encode(item, tensors)
        except NotPlain as error:
            raise NotPlain(f"[{key!r}]{error}") from None
    return result if plain else {_ITEMS: [[_encode(key, tensors), item] for key, item in result.items()]}


def decode(text: str | bytes, tensors: list[Any]) -> Any:
    """Return the state whose :func:`encode` is given as JSON.

    Raises:
        ValueError: If it is no JSON.
    """

    def restore(value: dict[str, Any]) -> Any:
        if len(value) != 1:
            return value
        ((tag, content),) = value.items()
        if tag == _TUPLE:
            return tuple(content)
        if tag == _FLOAT:
            return float(content)
        if tag == _TENSOR:
            return tensors[content]
        if tag == _ITEMS:
            return dict(content)
        return value

    return json.loads(text, object_hook=restore)


def _pieces(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield JSON in pieces: no other thread runs while one of them is made."""
    if value.__class__ is list and len(value) > _CHUNK:
        yield "["
        for start in range(0, len(value), _CHUNK):
            yield ("," if start else "") + _dump(value[start : start + _CHUNK])[1:-1]
        yield "]"
    elif value.__class__ is dict and value and (depth < 4 or len(value) > _CHUNK):
        items = list(value.items())
        if len(items) > _CHUNK:
            for start in range(0, len(items), _CHUNK):
                yield ("," if start else "{") + _dump(dict(items[start : start + _CHUNK]))[1:-1]
        else:
            for number, (key, item) in enumerate(items):
                yield ("," if number else "{") + _dump(key) + ":"
                yield from _pieces(item, depth + 1)
        yield "}"
    else:
        yield _dump(value)


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _checksum(content: bytes, tensors: list[Any]) -> str:
    checksum = hashlib.blake2b(content, digest_size=32)
    for tensor in tensors:
        import torch

        checksum.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        checksum.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return checksum.hexdigest()


# ---- the files -------------------------------------------------------------------------------------------


def write_snapshot(folder: Path, content: Any, tensors: list[Any], guard: Callable[[], None]) -> Path:
    """Write a snapshot so that there is a whole one or none, and delete those that are too old.

    Args:
        folder: The experiment's folder.
        content: What :func:`encode` returned.
        tensors: The tensors of it; with some the file is one of torch.
        guard: Called first, and when the file is complete; what it raises keeps that from getting its name.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
    """
    text = "".join(_pieces(content)).encode()
    checksum = _checksum(text, tensors)
    snapshots = folder / ST_SNAPSHOTS_DIRNAME
    guard()
    snapshots.mkdir(exist_ok=True)
    for left in snapshots.glob("*.tmp"):  # there is one writer only: a tuner that was killed has left it
        left.unlink(missing_ok=True)
    earlier = _files(snapshots)
    number = 1 + (int(earlier[0].stem) if earlier else 0)
    path = snapshots / f"{number:06d}.{'pt' if tensors else 'json'}"

    def write(file: BinaryIO) -> None:
        if tensors:
            import torch

            saved = {"version": SNAPSHOT_VERSION, "checksum": checksum, "content": text.decode(), "tensors": tensors}
            torch.save(saved, file)
        else:
            file.write(f'{{"version":{SNAPSHOT_VERSION},"checksum":"{checksum}","content":'.encode())
            file.write(text)
            file.write(b"}")

    _put(path, write, guard)
    for old in earlier[KEPT - 1 :]:
        old.unlink(missing_ok=True)
    return path


def _put(path: Path, write: Callable[[BinaryIO], None], guard: Callable[[], None]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        guard()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_snapshots(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the good snapshots of an experiment with their content, newest first; a warning names the others.

    Args:
        folder: The experiment's folder.
    """
    for path in _files(folder / ST_SNAPSHOTS_DIRNAME):
        try:
            yield path, _read(path)
        except _Unusable as error:
            logger.warning("%s is not used: %s", path, error)


def _files(snapshots: Path) -> list[Path]:
    try:
        found = [path for path in snapshots.iterdir() if _NAME.match(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a snapshot.

    Raises:
        _Unusable: If it is damaged, of a later version or of unknown kind.
    """
    try:
        version, checksum, content, tensors = (_read_torch if path.suffix == ".pt" else _read_json)(path)
    except OSError as error:
        raise _Unusable(f"it cannot be read: {error}") from None
    if version > SNAPSHOT_VERSION:
        raise _Unusable(f"it has format version {version}, this version of sthyper reads up to {SNAPSHOT_VERSION}")
    if checksum != _checksum(content, tensors):
        raise _Unusable("it is damaged: its checksum is another")
    try:
        result = decode(content, tensors)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _Unusable(f"it is damaged: {error}") from None
    if not isinstance(result, dict):
        raise _Unusable("it is damaged: it holds no state")
    return result


def _read_json(path: Path) -> tuple[int, str, bytes, list[Any]]:
    data = path.read_bytes()
    head = _HEAD.match(data)
    if head is None or not data.endswith(b"}"):
        raise _Unusable("it is damaged: it has no whole content")
    return int(head[1]), head[2].decode(), data[head.end() : -1], []


def _read_torch(path: Path) -> tuple[int, str, bytes, list[Any]]:
    try:
        import torch
    except ImportError:
        raise _Unusable("it holds tensors, and torch is not installed") from None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return int(saved["version"]), str(saved["checksum"]), saved["content"].encode(), list(saved["tensors"])
    except OSError:
        raise
    except Exception as error:  # torch has many words for a damaged file
        raise _Unusable(f"it is damaged: {(str(error).splitlines() or [''])[0]}") from None
