"""Torch in trials that are forked from a server which has it loaded: nothing hangs, threads and seeds are right."""

from __future__ import annotations

import os

import pytest

from sthyper.backend._processes import tagged


@pytest.fixture(scope="module")
def torch_driver(driver_class, tmp_path_factory):
    from sthyper.backend.launcher import Ready

    environ = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    # With what the first optimiser of a process would load, as the backend has it.
    modules = ["torch", "torch._dynamo", "torch.utils.data", "sklearn.cluster"]
    driver = driver_class(tmp_path_factory.mktemp("torch"), modules, environ)
    driver.launcher.start()
    driver.of(Ready, timeout=60.0)
    assert driver.warnings() == []
    yield driver
    driver.launcher.close()
    assert not tagged(*driver.tag)


@pytest.fixture
def driver(torch_driver, tmp_path):
    torch_driver.folder = tmp_path
    torch_driver.events.clear()
    return torch_driver


OPERATIONS = {
    "matmul": "(torch.rand(800, 800) @ torch.rand(800, 800)).sum()",
    "elementwise": "torch.rand(4_000_000).exp().sum()",
    "backward": "(torch.rand(800, 800, requires_grad=True) @ torch.rand(800, 800)).exp().mean().backward()",
    "conv": "torch.nn.Conv2d(8, 16, 3)(torch.rand(16, 8, 64, 64)).sum().backward()",
    "optimizer": """
m = torch.nn.Linear(500, 500); o = torch.optim.Adam(m.parameters())
for _ in range(3):
    o.zero_grad(); m(torch.rand(256, 500)).sum().backward(); o.step()
""",
    "numpy": "import numpy; (numpy.random.rand(800, 800) @ numpy.random.rand(800, 800)).sum()",
    "kmeans": "import sklearn.cluster; sklearn.cluster.KMeans(3, n_init=1).fit(torch.rand(5000, 8).numpy())",
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_do_not_hang(driver, name):
    script = driver.script(f"import torch\nprint(torch.get_num_threads())\n{OPERATIONS[name]}\nprint('done')")
    keys = [driver.spawn(script, threads=threads) for threads in (1, 2)]
    assert [driver.result(key).err for key in keys] == ["", ""]
    assert [driver.out(key) for key in keys] == ["1\ndone\n", "2\ndone\n"]


def test_the_thread_budget_is_used(driver):
    text = """
        import os, threading, torch, threadpoolctl
        torch.rand(2_000_000).exp()
        workers = len(os.listdir("/proc/self/task")) > 1
        pools = {p["num_threads"] for p in threadpoolctl.threadpool_info()}
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start(); thread.join()
        print(torch.get_num_threads(), pools, workers, found)
    """
    script = driver.script(text)
    assert driver.run(script, threads=2).out == "2 {2} True [2]\n"
    assert driver.run(script, threads=1).out == "1 {1} False [1]\n"
    # The user's own setting, and without any the number of cores.
    assert driver.run(script, env={"OMP_NUM_THREADS": "3"}).out == "3 {3} True [3]\n"
    cores = len(os.sched_getaffinity(0))
    assert driver.run(script).out == f"{cores} {{{cores}}} {cores > 1} [{cores}]\n"


def test_generators_are_seeded(driver):
    script = driver.script("""
        import random, numpy, torch
        print(random.random(), numpy.random.rand(), torch.rand(()).item())
    """)
    first, again, other, fresh, fresh_too = (
        driver.run(script, seed=seed).out.split() for seed in (2**40 + 1, 2**40 + 1, 2**40 + 2, None, None)
    )
    assert first == again
    for one, two in ((first, other), (fresh, fresh_too), (first, fresh)):
        assert all(a != b for a, b in zip(one, two, strict=True))
    by_hand = driver.run("""
        import random, numpy, torch
        seed = 2**40 + 1
        random.seed(seed); numpy.random.seed(seed % 2**32); torch.manual_seed(seed)
        print(random.random(), numpy.random.rand(), torch.rand(()).item())
    """)
    assert first == by_hand.out.split()


LOADER = """
    import sys
    import torch
    from torch.utils.data import DataLoader, Dataset
    class Squares(Dataset):
        def __len__(self):
            return 16
        def __getitem__(self, index):
            return torch.rand(300, 300) @ torch.rand(300, 300) * 0 + index ** 2
    if __name__ == "__main__":
        torch.rand(800, 800) @ torch.rand(800, 800)
        loader = DataLoader(Squares(), batch_size=4, num_workers=2, multiprocessing_context=sys.argv[1])
        print(sorted(int(b) for batch in loader for b in batch[:, 0, 0]) == [i ** 2 for i in range(16)])
"""


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_data_loader_workers(driver, method):
    result = driver.run(LOADER, method, threads=2)
    assert (result.out, result.code) == ("True\n", 0), result.err


@pytest.mark.slow
def test_data_loader_workers_of_a_forkserver(driver):
    # multiprocessing's own server ends a moment after its trial; it must not hold up the next one.
    result = driver.run(LOADER, "forkserver", threads=2)
    assert (result.out, result.code, result.forced) == ("True\n", 0, False), result.err


@pytest.mark.slow
def test_a_spawned_pool(driver):
    result = driver.run("""
        import multiprocessing
        import torch
        def work(x):
            return __name__, float((torch.ones(400, 400) * x @ torch.ones(400, 400)).sum())
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                print(pool.map(work, [1, 2]))
    """)
    assert result.out == f"{[('__mp_main__', 400.0**3), ('__mp_main__', 2 * 400.0**3)]}\n", result.err


def test_libraries_do_not_clean_up_after_each_trial(driver):
    # torch registers finalizers when it is imported; they are the server's.
    result = driver.run("import weakref; print([f for f in weakref.finalize._registry if f.atexit])")
    assert result.out == "[]\n"
