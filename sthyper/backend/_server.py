"""The fork server: loads libraries once, forks a process for each trial, and ends whole trials.

Run by path as ``python _server.py CONTROL_FD GUARDIAN_PID``. It only imports: no tensor operation, no thread, no file
of the user. (A process that has run a parallel region of OpenMP leaves its children a thread pool without threads,
in which they hang.) It talks JSON lines over the control socket and ends with everything below it when that closes,
when the guardian dies (the kernel then sends SIGTERM), or on SIGTERM.

Whose process is whose
    The server is a subreaper: whatever a trial leaves behind becomes a child of the server, so all processes of all
    trials are its descendants. A child of the server belongs to a trial if it is the trial's leader. Otherwise it was
    adopted, and belongs to the trial
    1. whose mark is in its environment. Each trial has a number in ``STHYPER_TREE``. A forked child still shows the
       environment block of the server in /proc, so the trial's leader overwrites the mark there, in place; all
       processes that it forks or executes inherit it;
    2. else whose process group it is in (a group's number is not given away while the group has members);
    3. else to which it belonged when it was last looked at;
    4. else that is the only one running which is not younger than it.
    Descendants of a child belong where the child belongs. A child that belongs to nobody is killed once all trials
    that it may belong to are gone.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this file's folder: its modules must not be found by the names that libraries import
STARTUP_MODULES = frozenset(sys.modules)

import contextlib  # noqa: E402
import ctypes  # noqa: E402
import importlib.util  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
import warnings  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from sthyper.backend import _libraries, _lines, _memory, _processes, _trial_process
else:

    def _sibling(name: str) -> Any:
        # By path, so that this process, and with it every trial, does not load the package.
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
        spec = importlib.util.spec_from_file_location("_sthyper" + name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    _libraries, _lines = _sibling("_libraries"), _sibling("_lines")
    _processes, _trial_process = _sibling("_processes"), _sibling("_trial_process")
    _memory = _sibling("_memory")


LEFTOVER_GRACE = 5.0
"""Seconds that the other processes of a trial may go on after its leader ended with code 0."""
KILL_AFTER = 2.0
"""Seconds between SIGTERM and SIGKILL."""
GIVE_UP_AFTER = 10.0
"""Seconds of SIGKILL after which a process counts as not ours to end (it runs as another user, or hangs for good)."""

# Variables that are read when the interpreter or a library is loaded, which in a fork is long past.
_READ_AT_LOAD = ("PYTHON", "LD_", "DYLD_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MALLOC_", "GLIBC_TUNABLES")


@dataclass
class _Trial:
    key: str
    mark: bytes
    pid: int
    start: int
    kill_after: float = KILL_AFTER
    code: int | None = None
    term_at: float = math.inf
    kill_at: float = math.inf
    forced: bool = False
    gave_up: bool = False
    asked: set[tuple[int, int]] = field(default_factory=set)

    def next_step(self, now: float) -> float:
        """Return when this trial must be looked at again, should nothing be heard until then."""
        if now >= self.kill_at:
            return now + 0.05
        step = self.kill_at if self.kill_at < math.inf else self.term_at
        # The last one to go may be no child of ours, so that its end is not signalled.
        return step if self.code is None else min(step, now + 0.25)


class _Server:
    def __init__(self, control: socket.socket, guardian: int) -> None:
        self._began = time.monotonic()
        self._pid = os.getpid()
        self._control = _lines.LineSocket(control)
        self._base_env = dict(os.environ)
        self._tag = ("", "")
        self._trials: dict[str, _Trial] = {}
        self._owners: dict[tuple[int, int], str] = {}
        self._oom_kills: dict[int, tuple[str, int]] = {}
        self._number = 0
        self._libraries = _libraries.Libraries(self._warn)
        self._warned_of: set[str] = set()
        self._asked_to_end = False
        # The mark in this process's own block of the environment; children overwrite their copy.
        getenv = _processes.libc.getenv
        getenv.restype = ctypes.c_void_p
        self._mark_address: int | None = getenv(_processes.MARK_NAME.encode())
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        ours: dict[int, Any] = {
            signal.SIGTERM: self._on_term,
            signal.SIGINT: signal.SIG_IGN,
            signal.SIGCHLD: lambda *_: None,
        }
        self._handlers = {number: signal.signal(number, handler) for number, handler in ours.items()}
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        _processes.subreaper()
        _processes.die_with_parent(guardian, signal.SIGTERM)

    def _on_term(self, *_: object) -> None:
        # Only a flag: the handler may run in the middle of anything. An import, which may take seconds, is broken off.
        self._asked_to_end = True
        if self._libraries.importing:
            self._libraries.importing = False
            raise _libraries.Terminate

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        try:
            while self._control.open and not self._asked_to_end:
                poll.register(self._control.fileno(), select.POLLIN | (select.POLLOUT if self._control.pending else 0))
                poll.poll(self._timeout())
                self._drain()
                self._control.flush()
                # First the ends: a trial that is gone makes room for the one to be started.
                self._note_ends(_processes.reap_children(self._look_at_memory))
                for message in self._control.receive():
                    getattr(self, "_do_" + message.pop("do"))(**message)
                self._supervise()
        except _libraries.Terminate:
            pass
        groups = () if _processes.LINUX else tuple(trial.pid for trial in self._trials.values())
        _processes.sweep(KILL_AFTER, groups)
        self._libraries.close()

    def _timeout(self) -> float | None:
        now = time.monotonic()
        step = min((trial.next_step(now) for trial in self._trials.values()), default=math.inf)
        return None if step == math.inf else max(0.0, math.ceil((step - now) * 1000))

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass

    def _say(self, event: str, **fields: Any) -> None:
        self._control.send({"event": event, **fields})

    def _warn(self, message: str) -> None:
        self._say("warning", message=message)

    # ---- loading libraries -----------------------------------------------------------------------------

    def _do_hello(self, tag: list[str], modules: list[str]) -> None:
        self._tag = (tag[0], tag[1])
        self._do_preload(modules)
        self._say("ready", seconds=time.monotonic() - self._began)

    def _do_preload(self, modules: list[str]) -> None:
        self._libraries.load(modules)

    # ---- starting --------------------------------------------------------------------------------------

    def _do_spawn(
        self,
        key: str,
        argv: list[str],
        mode: str,
        env: dict[str, str | None],
        cwd: str,
        stdout: str,
        stderr: str,
        threads: int | None,
        seed: int | None,
    ) -> None:
        if mode == "fork" and not self._may_fork(env):
            mode, argv = "exec", [sys.executable, *argv]
        self._number += 1
        mark = f"{self._number:0{_processes.MARK_WIDTH}d}"
        # What libraries set when they were loaded is part of a forked trial's environment, as it would be by hand.
        start = self._base_env if mode == "exec" else dict(os.environ)
        full = {name: value for name, value in {**start, **env}.items() if value is not None}
        if threads is not None:
            full[_libraries.THREADS_NAME] = str(threads)
            full |= {name: str(threads) for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name in full}
        full |= {self._tag[0]: self._tag[1], _processes.MARK_NAME: mark}
        count = _thread_count(full)
        child = _trial_process.Child(
            tuple(argv), full, cwd, stdout, stderr, seed, lambda: self._libraries.set_threads(count), STARTUP_MODULES
        )
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal that comes before the child has its own handlers must not vanish in ours.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of forking beside threads: there are none that matter
                pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self._warn(f"trial {key} cannot be started: fork: {error.strerror}")
            self._say("exited", key=key, code=1)
            self._say("gone", key=key, forced=False)
            return
        if pid == 0:
            self._become(child, mode, mark)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        info = _processes.process_info(pid)  # there until we wait for it, as a zombie if need be
        start_ticks = 0 if info is None else info.start
        self._trials[key] = _Trial(key, mark.encode(), pid, start_ticks)
        self._say("started", key=key, pid=pid, start_time=0.0 if info is None else _processes.start_time(info))

    def _may_fork(self, env: dict[str, str | None]) -> bool:
        if self._libraries.unsafe is not None:
            return False
        late = sorted(
            name
            for name, value in env.items()
            if name.startswith(_READ_AT_LOAD) and name != _libraries.THREADS_NAME and value != self._base_env.get(name)
        )
        if late and not self._warned_of.issuperset(late):
            self._warned_of.update(late)
            self._warn(
                f"environment: {', '.join(late)} is read when libraries are loaded; trials start in fresh interpreters "
                "(launch='exec') for it. Set it for the tuner itself to keep the warm start"
            )
        return not late

    def _become(self, child: _trial_process.Child, mode: str, mark: str) -> None:
        """Turn this fork into the trial; never returns."""
        code = 1
        try:
            _processes.die_with_parent(self._pid, signal.SIGKILL)
            if self._mark_address is not None:
                ctypes.memmove(self._mark_address, mark.encode(), _processes.MARK_WIDTH)
            _trial_process.detach(child, self._handlers)
            self._control.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            run = _trial_process.become_program if mode == "exec" else _trial_process.become_script
            code = run(child)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    # ---- ending ----------------------------------------------------------------------------------------

    def _do_end(self, key: str, grace: float, kill_after: float) -> None:
        trial = self._trials.get(key)
        if trial is None:
            return
        now = time.monotonic()
        trial.kill_after = kill_after
        trial.term_at = min(trial.term_at, now + grace)
        if trial.kill_at < math.inf:
            trial.kill_at = min(trial.kill_at, now + grace + kill_after)

    def _look_at_memory(self, pid: int) -> None:
        if any(trial.pid == pid for trial in self._trials.values()):
            self._oom_kills[pid] = _memory.oom_kills(pid)

    def _note_ends(self, codes: dict[int, int]) -> None:
        # By pid: adopted processes come here too.
        for trial in self._trials.values():
            if trial.code is None and trial.pid in codes:
                trial.code = codes[trial.pid]
                self._say("exited", key=trial.key, code=trial.code, oom_kills=self._oom_kills.pop(trial.pid, None))
                grace = LEFTOVER_GRACE if trial.code == 0 else 0.0
                trial.term_at = min(trial.term_at, time.monotonic() + grace)

    def _supervise(self) -> None:
        now = time.monotonic()
        ending = [t for t in self._trials.values() if t.code is not None or now >= t.term_at]
        if not ending:
            return
        owned = self._processes_by_trial()
        for trial in ending:
            processes = owned[trial.key]
            stuck = bool(processes) and now > trial.kill_at + GIVE_UP_AFTER
            if stuck and not trial.gave_up:
                trial.gave_up = True
                pids = ", ".join(str(info.pid) for info in processes)
                self._warn(f"trial {trial.key}: SIGKILL does not end process {pids}; it is left alone")
            if trial.code is not None and (stuck or not processes):
                del self._trials[trial.key]
                self._say("gone", key=trial.key, forced=trial.forced)
            elif now >= trial.kill_at:
                trial.forced = True
                for info in processes:
                    _processes.send_signal(info, signal.SIGKILL)
            elif now >= trial.term_at:
                self._ask_to_end(trial, processes, now)

    def _ask_to_end(self, trial: _Trial, processes: list[_processes.ProcessInfo], now: float) -> None:
        if trial.kill_at == math.inf:
            trial.kill_at = now + trial.kill_after
        elif trial.code is None:
            return  # what a leader starts while it ends is its way to clean up
        for info in processes:
            if (info.pid, info.start) not in trial.asked:
                trial.asked.add((info.pid, info.start))
                trial.forced = True
                _processes.send_signal(info, signal.SIGTERM)
                _processes.send_signal(info, signal.SIGCONT)  # a stopped process hears SIGTERM when it goes on

    def _processes_by_trial(self) -> dict[str, list[_processes.ProcessInfo]]:
        """Return the living processes of each trial (the rule is at the top of the file)."""
        processes = _processes.snapshot()
        owned: dict[str, list[_processes.ProcessInfo]] = {key: [] for key in self._trials}
        owners: dict[tuple[int, int], str] = {}
        leaders = {trial.pid: trial.key for trial in self._trials.values() if trial.code is None}
        for child in [info for info in processes.values() if self._is_mine(info)]:
            key = leaders.get(child.pid) or self._owner_of_adopted(child)
            if key is not None:
                tree = [child, *_processes.descendants(processes, child.pid)]
                owned[key] += _processes.living(tree)
                owners |= {(info.pid, info.start): key for info in tree}
        self._owners = owners
        return owned

    def _is_mine(self, info: _processes.ProcessInfo) -> bool:
        # Without subreapers orphans go to process 1; those that kept their group can be told.
        return info.ppid == self._pid or (
            not _processes.LINUX and info.ppid == 1 and any(t.pid == info.group for t in self._trials.values())
        )

    def _owner_of_adopted(self, child: _processes.ProcessInfo) -> str | None:
        environment = _processes.environment_of(child.pid)
        for trial in self._trials.values():
            if _processes.MARK_NAME.encode() + b"=" + trial.mark in environment:
                return trial.key
        for trial in self._trials.values():
            if trial.pid == child.group:
                return trial.key
        key = self._owners.get((child.pid, child.start))
        if key in self._trials:
            return key
        candidates = [trial.key for trial in self._trials.values() if trial.start <= child.start]
        if not candidates:
            _processes.send_signal(child, signal.SIGKILL)
        return candidates[0] if len(candidates) == 1 else None


def _thread_count(env: dict[str, str]) -> int:
    """Return the number of threads that OpenMP would take in this environment."""
    first = env.get(_libraries.THREADS_NAME, "").partition(",")[0].strip()
    if first.isdigit() and int(first) > 0:
        return int(first)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    control_fd, guardian = int(sys.argv[1]), int(sys.argv[2])
    del sys.argv[1:]
    os.set_inheritable(control_fd, False)
    _Server(socket.socket(fileno=control_fd), guardian).run()


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        _processes.sweep(0.0)
        os._exit(1)
    os._exit(0)
