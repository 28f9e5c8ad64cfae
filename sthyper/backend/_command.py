"""What a trial runs: a Python script or any other command line, and how a configuration becomes its arguments."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sthyper.config_space import Domain, non_constant_hyperparameter_keys
from sthyper.constants import ST_CHECKPOINT_DIR, ST_CONFIG_JSON_FNAME_ARG
from sthyper.errors import closest

__all__ = ["TRIAL_FIELDS", "Command", "parse_entry_point"]

TRIAL_FIELDS = (
    "trial_id",
    "run",
    "trial_dir",
    "checkpoint_dir",
    ST_CHECKPOINT_DIR,
    "last_resource",
    "seed",
    ST_CONFIG_JSON_FNAME_ARG,
)
"""Properties of a trial that templates may name; an entry of the configuration space with the same name wins."""

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
_SHELLS = frozenset({"ash", "bash", "dash", "fish", "ksh", "sh", "zsh"})
_SCRIPT_OPTION = re.compile(r"-[a-zA-Z]*c")
_SHELL = frozenset({"|", "||", "&", "&&", ";", "<", "<<", ">", ">>", "2>", "2>&1", "&>"})


@dataclass(frozen=True)
class Command:
    """A command line with templates.

    Args:
        words: The program (its absolute path), then its arguments, in which ``{name}`` stands for a value and ``{{``
            and ``}}`` for braces.
        is_script: Whether ``words[0]`` is a Python script for this interpreter.
        fields: Names in the templates.
    """

    words: tuple[str, ...]
    is_script: bool
    fields: frozenset[str]

    @property
    def program(self) -> Path:
        """The script or executable."""
        return Path(self.words[0])

    @property
    def source(self) -> Path:
        """The file that says what is run: the first argument that is a file (``Rscript FILE``), else the program."""
        if not self.is_script:
            for word in self.words[1:]:
                if os.path.isfile(word):
                    return Path(word).absolute()
        return self.program

    def passes_json(self, pass_args_as_json: bool) -> bool:
        """Whether the whole configuration reaches the program as a file."""
        return pass_args_as_json or ST_CONFIG_JSON_FNAME_ARG in self.fields

    def check(self, config_space: Mapping[str, Any], pass_args_as_json: bool) -> None:
        """Raise ``ValueError`` if configurations of a space do not fit the templates."""
        tuned = non_constant_hyperparameter_keys(dict(config_space))
        known = [*config_space, *TRIAL_FIELDS]
        for name in sorted(self.shell_fields.intersection(config_space)):
            domain = config_space[name]
            for value in getattr(domain, "categories", [] if isinstance(domain, Domain) else [domain]):
                self._check_shell(name, value)
        for name in sorted(self.fields.difference(known)):
            raise ValueError(
                f"entry_point: the template {{{name}}} is neither in config_space {list(config_space)} nor one of "
                f"{', '.join(TRIAL_FIELDS)}{closest(name, known)}; write {{{{ and }}}} for plain braces"
            )
        used = self.fields.intersection(config_space)
        if used and not self.passes_json(pass_args_as_json):
            for name in tuned:
                if name not in used:
                    raise ValueError(
                        f"config_space[{name!r}] is tuned, but entry_point has no template {{{name}}} (only "
                        f"{', '.join(sorted(used))}), so the trials would not see it; add it, take it out of the "
                        "space, or use pass_args_as_json=True"
                    )
            self.check_plain({name: config_space[name] for name in used})
        elif used:
            self.check_plain({name: config_space[name] for name in used})
        elif not self.passes_json(pass_args_as_json):
            self.check_plain(config_space)

    def check_plain(self, config: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` for values that cannot be arguments."""
        for name, value in config.items():
            if isinstance(value, list | dict):
                raise ValueError(
                    f"config_space[{name!r}] is {value!r}, which cannot be an argument of a program; use "
                    "LocalBackend(..., pass_args_as_json=True), and load_config_json in a Python script"
                )

    @property
    def shell_fields(self) -> frozenset[str]:
        """Templates in scripts that a shell reads (``sh -c SCRIPT``)."""
        found: set[str] = set()
        for n, word in enumerate(self.words):
            if _SCRIPT_OPTION.fullmatch(self.words[n - 1]) and any(
                os.path.basename(w) in _SHELLS for w in self.words[: max(0, n - 1)]
            ):
                found.update(match[1] for match in _FIELD.finditer(word) if match[1] is not None)
        return frozenset(found)

    def _check_shell(self, name: str, value: object) -> None:
        if shlex.quote(text := str(value)) != text:
            raise ValueError(
                f"config_space[{name!r}] has the value {value!r}, which the shell would not take for a word; hand "
                f"it over as an argument: entry_point=['sh', '-c', 'program --{name} \"$1\"', 'sh', '{{{name}}}']"
            )

    def line(
        self, config: Mapping[str, Any], properties: Mapping[str, str], pass_args_as_json: bool
    ) -> tuple[str, ...]:
        """Return the words of a trial's command line.

        Without a template of the configuration all of it follows as ``--name value``; entries that are ``None`` are
        left out.

        Args:
            config: The trial's configuration.
            properties: Values of :data:`TRIAL_FIELDS`.
            pass_args_as_json: Whether to add the file of the configuration instead of arguments.
        """
        values = {**properties, **{name: value for name, value in config.items() if name in self.fields}}
        if missing := sorted(self.fields.difference(values)):
            raise ValueError(f"the configuration {dict(config)} has no value for the template {{{missing[0]}}}")
        self.check_plain({name: value for name, value in values.items() if name in self.fields})
        for name in self.shell_fields.intersection(config):
            self._check_shell(name, config[name])
        words = [self.words[0], *(_fill(word, values) for word in self.words[1:])]
        if pass_args_as_json and ST_CONFIG_JSON_FNAME_ARG not in self.fields:
            words += [f"--{ST_CONFIG_JSON_FNAME_ARG}", properties[ST_CONFIG_JSON_FNAME_ARG]]
        elif not self.passes_json(pass_args_as_json) and self.fields.isdisjoint(config):
            self.check_plain(config)
            for name, value in config.items():
                if value is not None:
                    words += [f"--{name}", str(value)]
        return tuple(words)


def parse_entry_point(entry_point: object, search_path: str | None = None) -> Command:
    """Return the command that an entry point stands for.

    Args:
        entry_point: A path, a command line, or the words of one.
        search_path: Value of ``PATH`` for programs without a folder; default is this process's.

    Raises:
        TypeError: If it is none of these.
        FileNotFoundError: If there is no such script or program; the message names the closest one.
        ValueError: If it is empty, unbalanced, needs a shell, or names a file that is neither a Python script nor
            executable.
    """
    if isinstance(entry_point, str | Path):
        text = str(entry_point)
        # A file of exactly this name wins: its path may hold blanks.
        if isinstance(entry_point, Path) or os.path.exists(os.path.expanduser(text)):
            words = [text]
        else:
            words = _split(text)
    elif isinstance(entry_point, Sequence) and not isinstance(entry_point, bytes):
        words = [str(word) for word in entry_point]
        if any(not isinstance(word, str | Path) for word in entry_point):
            raise TypeError(f"entry_point must be a list of strings, got {entry_point!r}")
    else:
        raise TypeError(f"entry_point must be a path, a command line or a list of words, got {entry_point!r}")
    if not words or not words[0]:
        raise ValueError(f"entry_point must name a script or a program, got {entry_point!r}")
    program, is_script = _find(words[0], entry_point, search_path)
    fields = frozenset(name for word in words[1:] for name in _fields(word, entry_point))
    return Command((program, *words[1:]), is_script, fields)


def _split(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"entry_point {text!r} is no command line: {error}") from None
    for word in words[1:]:
        if word in _SHELL:
            raise ValueError(
                f"entry_point {text!r}: {word!r} is for a shell, and none runs the command; use "
                f"entry_point=['sh', '-c', {text!r}]"
            )
    return words


def _find(word: str, entry_point: object, search_path: str | None) -> tuple[str, bool]:
    """Return the absolute path of a script or program, and whether it is a Python script."""
    # Links are not followed: the interpreter of a virtual environment is one.
    path = os.path.abspath(os.path.expanduser(word))
    is_path = isinstance(entry_point, Path) or os.sep in word or word.endswith(".py")
    found = None if is_path else shutil.which(word, path=search_path)
    if found is not None:
        return os.path.abspath(found), False
    if os.path.isfile(path):
        if path.endswith(".py"):
            return path, True
        if os.access(path, os.X_OK):
            return path, False
        raise ValueError(
            f"entry_point {str(entry_point)!r}: {path} is neither a Python script (*.py) nor executable; make it so "
            f"(chmod +x), or name its interpreter: entry_point='sh {word}'"
        )
    if os.path.isdir(path):
        raise ValueError(f"entry_point {str(entry_point)!r}: {path} is a folder")
    others = _neighbours(path)
    if is_path:
        missing = f"file {path}"
    else:
        missing = f"file and no program on the PATH that is called {word!r}"
        others += _programs(search_path)
    raise FileNotFoundError(
        f"entry_point {str(entry_point)!r}: there is no {missing}{closest(os.path.basename(path), others)}"
    )


def _neighbours(path: str) -> list[str]:
    folder = os.path.dirname(path)
    ending = os.path.splitext(path)[1]
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if name.endswith(ending) and os.path.isfile(os.path.join(folder, name))]


def _programs(search_path: str | None) -> list[str]:
    found: set[str] = set()
    for folder in (search_path if search_path is not None else os.environ.get("PATH", os.defpath)).split(os.pathsep):
        try:
            found.update(os.listdir(folder or "."))
        except OSError:
            continue
    return sorted(found)


def _fields(word: str, entry_point: object) -> Iterator[str]:
    for match in _FIELD.finditer(word):
        if match[1] is not None:
            yield match[1]
        elif len(match[0]) == 1:
            raise ValueError(
                f"entry_point {entry_point!r}: single {match[0]!r} in {word!r}; "
                f"write {match[0] * 2!r} for a plain brace"
            )


def _fill(word: str, values: Mapping[str, Any]) -> str:
    return _FIELD.sub(lambda match: match[0][0] if match[1] is None else str(values[match[1]]), word)
