"""Rendezvous ports: never shared by two living trials, whichever tuner runs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.backend._rendezvous import PortPool, ports_to_choose_from
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform
from sthyper.errors import ExperimentError

HOLDER = """
import sys, time
from sthyper.backend._rendezvous import PortPool
pool = PortPool([int(word) for word in sys.argv[1:]])
print(pool.take(0), flush=True)
time.sleep(600)
"""


def free_ports(count: int) -> list[int]:
    pool = PortPool()
    ports = [pool.take(i) for i in range(count)]
    pool.close()
    return ports


def test_the_kernels_own_ports_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "range"
    file.write_text("32768\t60999\n")
    ports = ports_to_choose_from(file)
    assert (ports[0], ports[-1]) == (20000, 65535)
    assert not any(32768 <= port <= 60999 for port in ports)
    file.write_text("1024 65535")
    assert len(ports_to_choose_from(file)) > 10000, "nothing is left outside: any port that is free"
    assert ports_to_choose_from(tmp_path / "missing")[-1] == 49151
    assert set(free_ports(50)) <= set(ports_to_choose_from())


def test_two_pools_never_give_the_same_port() -> None:
    ports = free_ports(3)
    first, second = PortPool(ports), PortPool(ports)
    taken = {first.take(0), second.take(0), first.take(1)}
    assert taken == set(ports)
    with pytest.raises(ExperimentError, match="none of the ports"):
        second.take(1)
    first.release(1)
    assert second.take(1) in taken
    first.close()
    second.close()


def test_a_run_gives_back_the_port_of_the_run_before() -> None:
    pool = PortPool(free_ports(2))
    ports = [pool.take(7) for _ in range(4)]
    assert ports == [*ports[:2], *ports[:2]]
    assert ports[0] != ports[1], "not the same at once: a late process of the first run may still use it"
    pool.close()


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_in_use_is_passed_over(family: socket.AddressFamily, address: str) -> None:
    ports = free_ports(2)
    with socket.socket(family, socket.SOCK_STREAM) as server:
        try:
            server.bind((address, ports[0]))
        except OSError:
            pytest.skip(f"this machine has no {address}")
        server.listen()
        pool = PortPool(ports)
        assert pool.take(0) == ports[1]
        pool.close()


def test_the_port_of_a_tuner_that_was_killed_is_free_again() -> None:
    ports = free_ports(1)
    command = [sys.executable, "-c", HOLDER, *map(str, ports)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == ports[0]
        pool = PortPool(ports)
        with pytest.raises(ExperimentError):
            pool.take(0)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert pool.take(0) == ports[0]
        pool.close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("127.0.0.1", None)),
        ({"MASTER_PORT": "23456"}, ("127.0.0.1", "23456")),
        ({"MASTER_ADDR": "::1", "MASTER_PORT": None}, ("::1", "")),
    ],
)
def test_each_run_of_a_script_has_a_port_of_its_own(
    environment: dict[str, str | None], expected: tuple[str, str | None], tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, time\nfrom sthyper import Reporter\n"
        "open(Reporter().trial_dir + '/seen', 'w').write("
        "os.environ.get('MASTER_ADDR', '') + ' ' + os.environ.get('MASTER_PORT', ''))\n"
        "Reporter()(loss=1.0)\ntime.sleep(0.3)\n"
    )
    backend = LocalBackend(script, environment=environment)
    scheduler = RandomSearch({"x": uniform(0, 1)}, "loss", random_seed=0)
    tuner = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=4), n_workers=2)
    tuner.run()
    seen = [(tuner.tuner_path / "trials" / str(i) / "seen").read_text().split(" ") for i in range(4)]
    assert {address for address, _ in seen} == {expected[0]}
    ports = [port for _, port in seen]
    if expected[1] is None:
        assert len(set(ports)) == 4
        again = PortPool([int(port) for port in ports])
        assert {again.take(i) for i in range(4)} == {int(port) for port in ports}, "all are free again"
        again.close()
    else:
        assert set(ports) == {expected[1]}
