"""Tasks use their own notebook's code: two kernels, every host, and every way to run code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.client.callers import WAYS, Caller
from tests.support import Home, running_server

WHO = "import utils\nr = [utils.WHO, utils.__file__]"

LEAVES = """
import builtins, decimal, logging, os, random, socket, sys, time, warnings
import matplotlib, mlx.core as mx, numpy as np, pandas as pd
random.seed(0), np.random.seed(0), mx.random.seed(0)
matplotlib.rcParams["figure.figsize"] = (1, 1)
pd.set_option("display.max_rows", 2)
np.set_printoptions(precision=1)
np.seterr(all="raise")
logging.basicConfig(level=logging.ERROR, format="STRANGER %(message)s")
logging.disable(logging.INFO)
sys.setrecursionlimit(300)
decimal.getcontext().prec = 3
os.environ["TZ"] = "Pacific/Kiritimati"
time.tzset()
socket.setdefaulttimeout(0.001)
os.umask(0o077)
warnings.filterwarnings("error")
builtins.left_behind = 1
try:
    from IPython import get_ipython
    get_ipython().run_line_magic("load_ext", "autoreload")
    get_ipython().run_line_magic("autoreload", "2")
except Exception:
    pass
r = [random.Random(0).random(), float(np.random.RandomState(0).random_sample())]
"""

LOOKS = """
import builtins, decimal, logging, os, random, socket, sys, time, warnings
import matplotlib, mlx.core as mx, numpy as np, pandas as pd
mask = os.umask(0o022)
os.umask(mask)
draws = [random.random(), float(np.random.random()), mx.random.uniform().item()]
r = {
    "rcParams": list(matplotlib.rcParams["figure.figsize"]),
    "pandas": pd.get_option("display.max_rows"),
    "print options": np.get_printoptions()["precision"],
    "seterr": np.geterr()["divide"],
    "handlers": len(logging.getLogger().handlers),
    "level": [logging.getLogger().level, logging.root.manager.disable],
    "recursion": sys.getrecursionlimit(),
    "decimal": decimal.getcontext().prec,
    "zone": list(time.tzname),
    "timeout": socket.getdefaulttimeout(),
    "umask": mask,
    "warnings": any(f[0] == "error" and f[1] is None and f[2] is Warning for f in warnings.filters),
    "builtins": hasattr(builtins, "left_behind"),
    "autoreload": "IPython.extensions.autoreload" in sys.modules,
}, draws
"""


HOSTS = {"server": tuple(WAYS), "embedded": ("call",)}
"""Hosts of the runtime, and the ways that run there. The second host is each kernel itself."""


class Kernels(NamedTuple):
    """Two kernels in separate folders, and the ways to run code in them."""

    one: Caller
    other: Caller
    ways: tuple[str, ...]


@pytest.fixture(scope="module", params=HOSTS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernels]:
    """Start two kernels that all tests with the same host of the runtime share."""
    folder = tmp_path_factory.mktemp("kernels")
    with ExitStack() as stack:
        home, told = Home(folder), {}
        if request.param != "embedded":
            server = stack.enter_context(running_server(home, config={"OpenRuntimeApp": {"cpu_slots": 2, "spare_workers": 1}}))
            told = {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": server.token or ""}
        one, other = (stack.enter_context(Caller(folder / name, home.environment(told))) for name in ("projA", "projB"))
        yield Kernels(one, other, HOSTS[request.param])


def test_modules_of_two_notebooks_stay_apart(kernels: Kernels) -> None:
    for kernel in (kernels.one, kernels.other):
        (kernel.folder / "utils.py").write_text(f"WHO = {kernel.folder.name!r}\n")
    for way in kernels.ways:
        for kernel in (kernels.one, kernels.other, kernels.one):
            assert kernel.task(way, WHO) == [kernel.folder.name, str(kernel.folder / "utils.py")], way


def test_edited_module_is_seen_by_the_next_task(kernels: Kernels) -> None:
    kernel = kernels.one
    for way in kernels.ways:
        for rate in (0.1, 0.2, 0.001):  # the first two have the same size, and are written within a second
            (kernel.folder / "train_lib.py").write_text(f"LR = {rate}\n")
            assert kernel.task(way, "import train_lib\nr = train_lib.LR") == rate, way


def test_reloaded_and_new_functions_of_a_module_run(kernels: Kernels) -> None:
    kernel = kernels.one
    (kernel.folder / "helpers.py").write_text("def f():\n    return 1\n")
    kernel.do("import helpers, importlib")
    assert kernel.do("", "client.call(helpers.f)") == 1
    (kernel.folder / "helpers.py").write_text("def f():\n    return 2\ndef g():\n    return 3\n")
    kernel.do("importlib.reload(helpers)")
    assert kernel.do("", "[client.call(helpers.f), client.call(helpers.g), client.map(lambda i: helpers.f() + i, [1])]") == [2, 3, [3]]
    assert kernel.do("ex = client.executor()", "[ex.submit(helpers.f).result(), ex.submit(helpers.g).result()]") == [2, 3]


def test_state_of_a_task_reaches_no_other(kernels: Kernels) -> None:
    for way in kernels.ways[:2]:  # the others differ only in how they submit a task
        before, draws = kernels.one.task(way, LOOKS)
        seeded = kernels.one.task(way, LEAVES)
        after, later = zip(*(kernel.task(way, LOOKS) for kernel in (kernels.other, kernels.one)), strict=True)
        assert [*after] == [before, before], way
        numbers = [*seeded, *draws, *(number for drawn in later for number in drawn)]
        assert len(set(numbers)) == len(numbers), f"random numbers repeat after the seed of an earlier task: {way}"
