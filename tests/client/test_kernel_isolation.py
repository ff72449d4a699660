"""Tasks use their own notebook's code: two kernels, both hosts, and every way to run code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.client.callers import WAYS, Caller
from tests.support import Home, Server, running_server

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


@pytest.fixture(scope="module", params=["server, one worker", "server, several workers", "embedded"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server | None, Home]]:
    """Return the host of the runtime: a server with these kernels, or each kernel itself."""
    folder = tmp_path_factory.mktemp("right")
    if request.param == "embedded":
        yield None, Home(folder)
        return
    settings = {"cpu_slots": 1, "spare_workers": 0} if "one" in request.param else {"cpu_slots": 3, "spare_workers": 2}
    with running_server(folder, config={"OpenRuntimeApp": settings}) as server:
        yield server, server.home


@pytest.fixture
def kernels(host: tuple[Server | None, Home], tmp_path: Path) -> Iterator[tuple[Caller, Caller]]:
    """Start two kernels in separate folders."""
    server, home = host
    told = {} if server is None else {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": server.token or ""}
    with ExitStack() as stack:
        yield tuple(stack.enter_context(Caller(tmp_path / name, home.environment(told))) for name in ("projA", "projB"))  # type: ignore[misc]


@pytest.mark.parametrize("way", WAYS)
def test_modules_of_two_notebooks_stay_apart(kernels: tuple[Caller, Caller], way: str) -> None:
    for kernel in kernels:
        (kernel.folder / "utils.py").write_text(f"WHO = {kernel.folder.name!r}\n")
    for _ in range(2):
        for kernel in kernels:
            assert kernel.task(way, WHO) == [kernel.folder.name, str(kernel.folder / "utils.py")]


@pytest.mark.parametrize("way", WAYS)
def test_edited_module_is_seen_by_the_next_task(kernels: tuple[Caller, Caller], way: str) -> None:
    kernel, _ = kernels
    for rate in (0.1, 0.2, 0.001):  # the first two have the same size, and are written within a second
        (kernel.folder / "train_lib.py").write_text(f"LR = {rate}\n")
        assert kernel.task(way, "import train_lib\nr = train_lib.LR") == rate


def test_reloaded_and_new_functions_of_a_module_run(kernels: tuple[Caller, Caller]) -> None:
    kernel, _ = kernels
    (kernel.folder / "helpers.py").write_text("def f():\n    return 1\n")
    kernel.do("import helpers, importlib")
    assert kernel.do("", "client.call(helpers.f)") == 1
    (kernel.folder / "helpers.py").write_text("def f():\n    return 2\ndef g():\n    return 3\n")
    kernel.do("importlib.reload(helpers)")
    assert kernel.do("", "[client.call(helpers.f), client.call(helpers.g), client.map(lambda i: helpers.f() + i, [1])]") == [2, 3, [3]]
    assert kernel.do("ex = client.executor()", "[ex.submit(helpers.f).result(), ex.submit(helpers.g).result()]") == [2, 3]


@pytest.mark.parametrize("way", WAYS)
def test_state_of_a_task_reaches_no_other(kernels: tuple[Caller, Caller], way: str) -> None:
    one, other = kernels
    before, draws = zip(*(kernel.task(way, LOOKS) for kernel in kernels), strict=True)
    seeded = one.task(way, LEAVES)
    after, later = zip(*(kernel.task(way, LOOKS) for kernel in (other, one)), strict=True)
    assert [*after] == [*reversed(before)]
    numbers = [*seeded, *(number for drawn in (*draws, *later) for number in drawn)]
    assert len(set(numbers)) == len(numbers), "random numbers repeat after the seed of an earlier task"
