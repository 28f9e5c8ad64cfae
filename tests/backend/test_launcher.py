"""A forked trial is the script as the user runs it by hand; commands; ends; preloading."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sthyper.backend._processes import process_info, tagged
from sthyper.backend.launcher import Exited, Gone, Launcher, LauncherWarning, Lost, SpawnRequest, Started

NASTY = """
    import os, signal, subprocess, sys, time
    folder = sys.argv[1]
    def stay(name):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(os.path.join(folder, name + ".tmp"), "w") as file:
            file.write(str(os.getpid()))
        os.rename(os.path.join(folder, name + ".tmp"), os.path.join(folder, name))
        time.sleep(60)
        os._exit(0)
"""
FORK_DAEMON = """
    def daemon(name):
        child = os.fork()
        if child == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                stay(name)
            os._exit(0)
        os.waitpid(child, 0)
"""


def dead(pid: int) -> bool:
    info = process_info(pid)
    return info is None or not info.alive


def wait_dead(pid: int, timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while not dead(pid):
        assert time.monotonic() < end, f"process {pid} is still alive"
        time.sleep(0.01)


# ---- the same as by hand -------------------------------------------------------------------------------

SCRIPTS = {
    "main": """
        import os, sys
        print(sys.argv[1:], __name__, __spec__, __file__ == sys.argv[0] == os.path.abspath(sys.argv[0]))
        print(sys.path[0] == os.path.dirname(os.path.abspath(__file__)), sys.modules["__main__"].__dict__ is globals())
        print(os.getcwd(), sys.executable, sorted(globals()), type(__loader__).__name__, __package__)
        print(sys.orig_argv, sys.flags, repr(sys.stdin.read()), sys.stdout.isatty(), sys.stdout.line_buffering)
        print(sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors)
    """,
    "return": "print('done')",
    "exit_none": "import sys; sys.exit()",
    "exit_zero": "raise SystemExit(0)",
    "exit_three": "import sys; sys.exit(3)",
    "exit_negative": "import sys; sys.exit(-1)",
    "exit_large": "import sys; sys.exit(256 + 7)",
    "exit_huge": "import sys; sys.exit(2 ** 70)",
    "exit_true": "import sys; sys.exit(True)",
    "exit_text": "import sys; print('out'); sys.exit('a reason')",
    "exit_tuple": "raise SystemExit(1, 2)",
    "exit_in_finally": """
        import sys
        try:
            sys.exit(4)
        finally:
            print("finally")
    """,
    "error": """
        def inner(x):
            return 1 / x
        try:
            inner(0)
        except ZeroDivisionError as error:
            raise ValueError("two") from error
    """,
    "import_error": "import math\nimport no_such_module_anywhere",
    "syntax_error": "x = 1\ndef f(:\n    pass\n",
    "interrupt": "print('so far')\nraise KeyboardInterrupt",
    "term": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "handlers": """
        import signal
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP):
            print(number, signal.getsignal(number))
        print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.set_wakeup_fd(-1))
    """,
    "hook": """
        import sys
        def hook(kind, error, trace):
            print("hook", kind, error, trace.tb_lineno, trace.tb_next)
        sys.excepthook = hook
        raise ValueError("mine")
    """,
    "hook_fails": """
        import sys
        sys.excepthook = lambda *_: sys.exit(9)
        raise ValueError("mine")
    """,
    "atexit": """
        import atexit, sys, threading, time
        atexit.register(lambda: print("atexit", threading.main_thread().is_alive()))
        def late():
            time.sleep(0.05)
            print("thread")
        threading.Thread(target=late).start()
        print("end of the script")
        sys.exit(5)
    """,
    "unclosed": """
        class Noisy:
            def __del__(self):
                print("deleted")
        noisy = Noisy()
        noisy.self = noisy
        import helper
        print("end")
    """,
    "daemon_thread": """
        import threading, time
        def work():
            while True:
                time.sleep(0.0005)
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.02)
    """,
    "warnings": """
        import warnings
        for _ in range(2):
            warnings.warn("careful")
        warnings.warn("old", DeprecationWarning)
        print([f[:3] for f in warnings.filters])
    """,
    "annotations": """
        import dataclasses
        @dataclasses.dataclass
        class A:
            x: int
        value: float = 1.0
        print(A.__annotations__, __annotations__, dataclasses.fields(A)[0].type)
    """,
    "pickle": """
        import pickle
        class A:
            pass
        print(pickle.loads(pickle.dumps(A)) is A, A.__module__)
    """,
    "threads": """
        import threading
        print(threading.active_count(), threading.current_thread() is threading.main_thread())
    """,
    "closed_stdout": "import sys; print('x'); sys.stdout.close()",
    "full_stdout": """
        import os, sys
        print("x")
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, 1)
    """,
    "source": """
        import inspect
        def f():
            return 1
        print(inspect.getsource(f), inspect.stack()[0].filename == __file__)
    """,
    "user_fork": """
        import os, sys
        sys.stdout.flush()
        if os.fork():
            os.wait()
            print("parent")
        else:
            print("child")
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_forked_script_does_what_it_does_by_hand(name, driver, by_hand):
    driver.script(
        "print('helper')\nclass H:\n    def __del__(self):\n        print('H deleted')\nh = H()\n", "helper.py"
    )
    script = driver.script(SCRIPTS[name])
    expected = by_hand(script, "--lr", "0.1")
    result = driver.run(script, "--lr", "0.1")
    assert (result.code, result.err, result.out) == (expected.code, expected.err, expected.out)


def test_signals_that_are_ignored_from_the_start_stay_so(make_driver, by_hand):
    """As of a tuner in the background of a script, or under nohup."""
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        driver = make_driver()
        script = driver.script(SCRIPTS["handlers"])
        result, expected = driver.run(script), by_hand(script)
        assert f"{signal.SIGINT:d} 1\n" in result.out
        assert f"{signal.SIGHUP:d} 1\n" in result.out
        assert (result.code, result.err, result.out) == (expected.code, expected.err, expected.out)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def test_a_file_left_open_is_written(driver):
    driver.script("log = open(__file__ + '.log', 'w')\nlog.write('helper')", "helper.py")
    result = driver.run("import helper\nlog = open(__file__ + '.log', 'w')\nlog.write('text')")
    assert result.code == 0
    assert (driver.folder / "script.py.log").read_text() == "text"
    assert (driver.folder / "helper.py.log").read_text() == "helper"


def test_a_script_that_is_not_there_fails_like_the_interpreter(driver, by_hand):
    missing = driver.folder / "no.py"
    result = driver.run(missing)
    assert result.code == by_hand(missing).code == 2
    assert "can't open file" in result.err
    assert str(missing) in result.err


def test_a_symbolic_link_gives_the_folder_of_the_script(driver, by_hand):
    real = driver.folder / "real"
    real.mkdir()
    (real / "script.py").write_text("import sys; print(sys.path[0], __file__)")
    link = driver.folder / "link.py"
    link.symlink_to(real / "script.py")
    assert driver.run(link).out == by_hand(link).out


def test_own_group_and_no_descriptors_of_others(driver):
    waiting = driver.spawn(driver.script("import sys; sys.stdin.read(); import time; time.sleep(60)", "wait.py"))
    result = driver.run("""
        import os
        fds = sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}"))
        print(fds, os.getpgrp() == os.getpid(), os.readlink("/proc/self/fd/0"))
    """)
    assert result.out == "[0, 1, 2] True /dev/null\n"
    driver.launcher.end(waiting, grace=0.0)
    assert driver.result(waiting).code == -signal.SIGTERM


def test_output_is_appended(driver):
    script = driver.script("import os, sys; print(1); print(2, file=sys.stderr)")
    log = driver.folder / "log"
    for key in ("a", "b"):
        driver.launcher.spawn(SpawnRequest(key, (str(script),), "fork", {}, os.getcwd(), str(log), str(log)))
        driver.of(Gone, key)
    assert sorted(log.read_text().split()) == ["1", "1", "2", "2"]


def test_started_names_the_process(driver):
    key = driver.spawn(driver.script("import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
    started = driver.of(Started, key)
    since_boot = psutil.Process(started.pid).create_time() - psutil.boot_time()
    assert started.start_time == pytest.approx(since_boot, abs=0.05)
    driver.wait_for_file(f"{key}/std.out")
    driver.launcher.end(key, grace=0.0)
    assert driver.result(key).out == f"{started.pid}\n"


# ---- environment, threads, seeds -----------------------------------------------------------------------


def test_environment_is_changed_and_removed(make_driver):
    environ = {**os.environ, "KEEP": "1", "CHANGE": "old", "REMOVE": "1", "PATH": os.environ["PATH"]}
    driver = make_driver(environ=environ)
    text = """
        import json, os, subprocess
        print(json.dumps(dict(os.environ)))
    """
    changes = {"CHANGE": "new", "REMOVE": None, "ADD": "ä"}
    forked = json.loads(driver.run(text, env=changes).out)
    script = driver.script(text)
    command = driver.spawn(Path(sys.executable), script, mode="exec", env=changes)
    executed = json.loads(driver.result(command).out)
    for found in (forked, executed):
        assert found.pop("STHYPER_TREE").isdigit()
        assert (found.pop("STHYPER_PRELOADED_UNTIL", None) is None) == (found is executed)
        assert found.pop(driver.tag[0]) == driver.tag[1]
        assert found == {k: v for k, v in environ.items() if k != "REMOVE"} | {"CHANGE": "new", "ADD": "ä"}


def test_thread_budget_is_in_the_environment(make_driver):
    driver = make_driver(environ={**os.environ, "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"})
    text = "import os; print(os.environ.get('OMP_NUM_THREADS'), os.environ.get('MKL_NUM_THREADS'))"
    assert driver.run(text).out == "3 3\n"
    assert driver.run(text, threads=2).out == "2 2\n"
    assert driver.run(text, env={"OMP_NUM_THREADS": "4"}).out == "4 3\n"


def test_seeds(driver):
    text = "import random; print(random.random())"
    script = driver.script(text)
    assert driver.run(script, seed=5).out == driver.run(script, seed=5).out
    drawn = {driver.run(script, seed=seed).out for seed in (5, 6, None, None)}
    assert len(drawn) == 4


def test_working_directory(driver, tmp_path):
    text = "import os; print(os.getcwd())"
    assert driver.run(text).out.strip() == os.getcwd()
    assert driver.run(text, cwd=str(tmp_path)).out.strip() == str(tmp_path)


def test_a_missing_working_directory_is_reported_on_stderr(driver):
    result = driver.run("print(1)", cwd=str(driver.folder / "nowhere"))
    assert result.code == 1
    assert "nowhere" in result.err


# ---- commands ------------------------------------------------------------------------------------------


def test_any_command_runs(driver):
    script = driver.folder / "run.sh"
    script.write_text("#!/bin/sh\necho $1 $NAME; trap '' PIPE; exit 7")
    script.chmod(0o755)
    result = driver.run(script, "hello", mode="exec", env={"NAME": "you"})
    assert (result.code, result.out) == (7, "hello you\n")


def test_a_missing_command_is_reported_on_stderr(driver):
    result = driver.run(driver.folder / "nothing", mode="exec")
    assert result.code == 127
    assert "cannot run" in result.err
    not_executable = driver.script("")
    assert driver.run(not_executable, mode="exec").code == 126


def test_a_command_is_ended_like_a_script(driver):
    key = driver.spawn(Path("/bin/sh"), "-c", "sleep 60 & sleep 60", mode="exec")
    driver.of(Started, key)
    driver.launcher.end(key, grace=0.0)
    assert driver.result(key, timeout=1.5).code == -signal.SIGTERM


# ---- ends ----------------------------------------------------------------------------------------------


def test_sigterm_right_after_the_start_is_not_lost(driver):
    script = driver.script("import time; time.sleep(60)")
    keys = [driver.spawn(script) for _ in range(5)]
    for key in keys:
        driver.launcher.end(key, grace=0.0, kill_after=20.0)
    for key in keys:
        result = driver.result(key, timeout=10.0)
        assert (result.code, result.forced) == (-signal.SIGTERM, True)


def test_sigterm_then_sigkill(driver):
    script = driver.script(NASTY + "    stay('leader')")
    key = driver.spawn(script, driver.folder)
    driver.wait_for_file("leader")
    begin = time.monotonic()
    driver.launcher.end(key, grace=0.3, kill_after=0.4)
    result = driver.result(key)
    assert (result.code, result.forced) == (-signal.SIGKILL, True)
    assert 0.7 <= time.monotonic() - begin < 2.0


def test_what_a_leader_starts_to_clean_up_is_not_signalled(driver):
    text = """
        import signal, subprocess, sys, time
        def clean_up(*_):
            command = [sys.executable, "-c", "import time; time.sleep(0.5); print('cleaned')"]
            sys.exit(subprocess.run(command).returncode)
        signal.signal(signal.SIGTERM, clean_up)
        print("up", flush=True)
        time.sleep(60)
    """
    key = driver.spawn(driver.script(text))
    driver.wait_for_file(f"{key}/std.out")
    driver.launcher.end(key, grace=0.0, kill_after=20.0)
    result = driver.result(key)
    assert (result.code, result.out) == (0, "up\ncleaned\n")


def test_a_second_end_shortens_the_time_and_never_lengthens_it(driver):
    script = driver.script("import time; print('up', flush=True); time.sleep(60)")
    key = driver.spawn(script)
    driver.wait_for_file(f"{key}/std.out")
    begin = time.monotonic()
    driver.launcher.end(key, grace=50.0)
    driver.launcher.end(key, grace=0.2)
    driver.launcher.end(key, grace=50.0)
    driver.result(key)
    assert 0.2 <= time.monotonic() - begin < 2.0


def test_grace_lets_a_trial_end_itself(driver):
    key = driver.spawn(driver.script("import time; time.sleep(0.3)"))
    driver.launcher.end(key, grace=20.0)
    result = driver.result(key)
    assert (result.code, result.forced) == (0, False)


def test_a_stopped_process_is_ended(driver):
    key = driver.spawn(driver.script("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"))
    pid = driver.of(Started, key).pid
    while (info := process_info(pid)) is not None and info.state != "T":
        time.sleep(0.01)
    driver.launcher.end(key, grace=0.0, kill_after=20.0)
    assert driver.result(key, timeout=5.0).code == -signal.SIGTERM


def test_after_code_0_the_others_may_finish(driver):
    result_key = driver.spawn(
        driver.script("""
            import subprocess, sys
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.6); print('late')"])
        """)
    )
    exited = driver.of(Exited, result_key)
    assert exited.code == 0
    assert not [e for e in driver.events if isinstance(e, Gone)]
    result = driver.result(result_key)
    assert (result.out, result.forced) == ("late\n", False)


def test_after_a_failure_the_others_are_ended_at_once(driver):
    begin = time.monotonic()
    key = driver.spawn(driver.script("import subprocess, sys; subprocess.Popen(['sleep', '60']); sys.exit(1)"))
    result = driver.result(key)
    assert (result.code, result.forced) == (1, True)
    assert time.monotonic() - begin < 2.0


def test_ending_one_trial_spares_the_other(driver):
    script = driver.script(NASTY + FORK_DAEMON + "    daemon(sys.argv[2] + 'd')\n    stay(sys.argv[2] + 'l')")
    keys = {name: driver.spawn(script, driver.folder, name) for name in "ab"}
    pids = {name: int(driver.wait_for_file(name)) for name in ("ad", "al", "bd", "bl")}
    driver.launcher.end(keys["a"], grace=0.0, kill_after=0.2)
    driver.of(Gone, keys["a"])
    assert dead(pids["ad"])
    assert dead(pids["al"])
    assert not dead(pids["bd"])
    assert not dead(pids["bl"])
    driver.launcher.end(keys["b"], grace=0.0, kill_after=0.2)
    driver.of(Gone, keys["b"])
    assert dead(pids["bd"])


def test_a_daemon_with_an_empty_environment_goes_with_its_trial(driver):
    text = (
        NASTY
        + """
    if len(sys.argv) > 2:
        stay("daemon")
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.execve(sys.executable, [sys.executable, __file__, folder, "again"], {})
        os._exit(0)
    os.waitpid(child, 0)
    stay("leader")
    """
    )
    key = driver.spawn(driver.script(text), driver.folder)
    daemon = int(driver.wait_for_file("daemon"))
    driver.wait_for_file("leader")
    driver.launcher.end(key, grace=0.0, kill_after=0.1)
    driver.of(Gone, key)
    assert dead(daemon)


# ---- preloading ----------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages of the test's own; returns the environment that finds it."""
    folder = tmp_path / "lib" / "site-packages"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))
    return folder, {**os.environ, "PYTHONPATH": str(folder)}


def test_modules_are_loaded_once(make_driver, site):
    folder, environ = site
    (folder / "counted.py").write_text("import os; pid = os.getpid()")
    (folder / "later.py").write_text("import os; pid = os.getpid()")
    driver = make_driver(preload=["counted"], environ=environ)
    _, server = driver.pids()
    script = driver.script("import counted, later; print(counted.pid, later.pid)")
    counted, later = driver.run(script).out.split()
    assert int(counted) == server != int(later)
    driver.launcher.preload(["later", "counted"])
    assert driver.run(script).out.split() == [str(server), str(server)]


def test_what_cannot_be_preloaded_is_warned_of(make_driver, site):
    folder, environ = site
    (folder / "broken.py").write_text("import os\nraise ValueError('no such day')")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)")
    (folder.parent / "mine.py").write_text("raise AssertionError('a file of the user was executed')")
    driver = make_driver(preload=["broken", "exits", "no_such_package", "colorsys"], environ=environ)
    driver.launcher.preload(["mine", "broken"])
    assert driver.run("import sys; print('colorsys' in sys.modules)").out == "True\n"
    assert [w.partition(" ")[0] for w in sorted(driver.warnings())] == ["broken", "exits", "mine", "no_such_package"]
    assert "ValueError: no such day" in "".join(driver.warnings())


def test_a_package_that_starts_a_thread_switches_to_exec(make_driver, site):
    folder, environ = site
    (folder / "threaded.py").write_text(
        "import threading, time\nthread = threading.Thread(target=time.sleep, args=(60,), daemon=True)\nthread.start()"
    )
    driver = make_driver(preload=["threaded"], environ=environ)
    assert "importing threaded started a thread" in driver.of(LauncherWarning).message
    result = driver.run("import threaded, sys; print(threaded.thread.is_alive(), sys.argv)", "--lr", "1", seed=1)
    assert result.out == f"True {[str(driver.folder / 'script.py'), '--lr', '1']}\n"


def test_cuda_in_the_server_switches_to_exec(make_driver, site):
    # Stands for torch on a machine with a GPU: what counts is the question that the server asks.
    folder, environ = site
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("import torch.cuda")
    (folder / "torch" / "cuda.py").write_text("ready = False\ndef is_initialized():\n    return ready")
    (folder / "kernels.py").write_text("import torch\ntorch.cuda.ready = True")
    driver = make_driver(preload=["torch", "kernels"], environ=environ)
    assert "importing kernels initialised CUDA" in driver.of(LauncherWarning).message
    assert driver.run("import sys; print('kernels' in sys.modules)").out == "False\n"


def test_cuda_that_only_forks_cannot_use_switches_to_exec(make_driver, site):
    # Asking the driver for the number of GPUs starts nothing that torch knows of, but spoils CUDA in every fork.
    folder, environ = site
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("import torch.cuda, torch._C")
    (folder / "torch" / "cuda.py").write_text("def is_initialized():\n    return False")
    (folder / "torch" / "_C.py").write_text(
        "import os\nspoilt = asked = False\n"
        "def _cuda_isInBadFork():\n    return spoilt\n"
        "def in_child():\n    global spoilt\n    spoilt = asked\n"
        "os.register_at_fork(after_in_child=in_child)\n"
    )
    (folder / "kernels.py").write_text("import torch._C\ntorch._C.asked = True")
    text = "import sys; print('torch' in sys.modules)"
    driver = make_driver(preload=["torch"], environ=environ)
    assert driver.run(text).out == "True\n"
    assert driver.warnings() == []
    driver.launcher.preload(["kernels"])
    assert "asked the CUDA driver" in driver.of(LauncherWarning).message
    assert driver.run(text).out == "False\n"


@pytest.mark.parametrize("own", [None, "0"])
def test_libraries_count_gpus_without_starting_cuda(make_driver, site, own):
    folder, environ = site
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    (folder / "counts.py").write_text(f"import os\nseen = os.environ.get({name!r})")
    environ.pop(name, None)
    if own is not None:
        environ[name] = own
    text = f"import os, counts; print(counts.seen, os.environ.get({name!r}))"
    assert make_driver(preload=["counts"], environ=environ).run(text).out == f"1 {own}\n"


def test_variables_that_are_read_at_start_make_a_fresh_interpreter(make_driver):
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"} | {"PYTHONUTF8": "1"}
    driver = make_driver(environ=environ)
    text = "print(hash('abc'))"
    changed = [driver.run(text, env={"PYTHONHASHSEED": "5"}).out for _ in range(2)]
    expected = subprocess.run([sys.executable, "-c", text], env={"PYTHONHASHSEED": "5"}, capture_output=True, text=True)
    assert changed == [expected.stdout] * 2
    assert len(driver.warnings()) == 1
    assert "PYTHONHASHSEED" in driver.warnings()[0]
    assert driver.run(text, env={"PYTHONUTF8": "1"}).out != expected.stdout


def test_the_scripts_own_module_wins_over_a_preloaded_one(make_driver):
    driver = make_driver(preload=["colorsys", "xml.dom.minidom"])
    (driver.folder / "colorsys.py").write_text("mine = True")
    (driver.folder / "xml").mkdir()
    (driver.folder / "xml" / "__init__.py").write_text("mine = True")
    (driver.folder / "os.py").write_text("raise AssertionError('by hand os is loaded before the script')")
    result = driver.run("import colorsys, xml, os; print(colorsys.mine, xml.mine)")
    assert (result.out, result.err) == ("True True\n", "")


# ---- life of the launcher ------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", ["server", "guardian", "both"])
def test_a_dead_supervisor_is_noticed_and_swept(make_driver, victims):
    driver = make_driver()
    script = driver.script(NASTY + FORK_DAEMON + "    daemon('daemon')\n    stay('leader')")
    driver.spawn(script, driver.folder)
    pids = [int(driver.wait_for_file(name)) for name in ("daemon", "leader")]
    guardian, server = driver.pids()
    begin = time.monotonic()
    for name, pid in (("server", server), ("guardian", guardian)):
        if victims in (name, "both"):
            os.kill(pid, signal.SIGKILL)
    lost = driver.of(Lost)
    assert time.monotonic() - begin < 5.0
    names = {"server": ["fork server"], "guardian": ["guardian"], "both": ["fork server", "guardian"]}
    assert lost.who in names[victims]
    assert not tagged(*driver.tag)
    assert all(dead(pid) for pid in (*pids, guardian, server))
    # Nothing more comes, and orders are no error.
    driver.spawn(script, driver.folder)
    driver.launcher.end("0-0", grace=0.0)
    assert driver.launcher.read() == []
    assert driver.launcher.next_deadline() is None


def test_waiting_for_a_survivor_does_not_spin(make_driver):
    driver = make_driver()
    driver.spawn(driver.script(NASTY + "    stay('leader')"), driver.folder)
    driver.wait_for_file("leader")
    guardian, _ = driver.pids()
    os.kill(guardian, signal.SIGKILL)
    calls = 0
    begin = time.process_time()
    while not any(isinstance(event, Lost) for event in driver.events):
        deadline = driver.launcher.next_deadline()
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        select.select(driver.launcher.filenos(), [], [], wait)
        driver.events += driver.launcher.read()
        calls += 1
    assert calls < 200
    assert time.process_time() - begin < 0.5


def test_close_ends_everything_and_can_be_repeated(make_driver):
    driver = make_driver()
    key = driver.spawn(driver.script("import time; print('up', flush=True); time.sleep(60)"))
    driver.wait_for_file(f"{key}/std.out")
    begin = time.monotonic()
    driver.launcher.close()
    assert time.monotonic() - begin < 2.0
    assert not tagged(*driver.tag)
    driver.launcher.close()
    driver.launcher.abandon()
    assert driver.launcher.read() == []
    assert driver.launcher.filenos() == []


def test_abandon_returns_at_once(make_driver):
    driver = make_driver()
    driver.spawn(driver.script(NASTY + "    stay('leader')"), driver.folder)
    leader = int(driver.wait_for_file("leader"))
    begin = time.monotonic()
    driver.launcher.abandon()
    assert time.monotonic() - begin < 0.2
    wait_dead(leader, 5.0)
    while tagged(*driver.tag):
        assert time.monotonic() - begin < 6.0
        time.sleep(0.05)


def test_close_while_libraries_are_loaded(make_driver, site):
    folder, environ = site
    (folder / "slow.py").write_text("import time\nfor _ in range(600): time.sleep(0.1)")
    driver = make_driver(preload=["slow"], environ=environ, ready=False)
    time.sleep(0.5)
    begin = time.monotonic()
    driver.launcher.close()
    assert time.monotonic() - begin < 1.5


def test_a_launcher_is_started_once_and_closed_without_a_start(make_driver):
    driver = make_driver()
    with pytest.raises(RuntimeError, match="started once"):
        driver.launcher.start()
    unused = Launcher(preload=[], tag=("A", "b"))
    unused.close()
    assert unused.read() == []


def test_windows_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(RuntimeError, match="Windows"):
        Launcher(preload=[], tag=("A", "b"))


def test_the_tuners_side_is_light():
    code = "import sys, sthyper.backend.launcher, sthyper.backend._preload; print([m for m in %r if m in sys.modules])"
    heavy = ["torch", "numpy", "psutil", "pandas", "lightning", "scipy"]
    done = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_many_orders_do_not_block(make_driver):
    driver = make_driver()
    _, server = driver.pids()
    os.kill(server, signal.SIGSTOP)
    begin = time.monotonic()
    for _ in range(2000):
        driver.launcher.end("no-such-trial" * 20, grace=0.0)
    script = driver.script("print('ran')")
    key = driver.spawn(script)
    driver.launcher.read()
    assert time.monotonic() - begin < 2.0
    os.kill(server, signal.SIGCONT)
    assert driver.result(key).out == "ran\n"
