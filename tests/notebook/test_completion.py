"""Tab completion in real kernels with an embedded runtime and with a server."""

from __future__ import annotations

from pathlib import Path

from tests.notebook.conftest import Kernel, running_kernel
from tests.support import Home


def test_tab_offers_tasks_in_the_right_state(kernel: Kernel) -> None:
    kernel.run("%openruntime matrix_multiply size=8 --as done_one")
    kernel.run("%%openruntime --bg --as waiting_one\nimport time; time.sleep(600)")
    done, live = kernel.value("done_one.id").strip("'"), kernel.value("waiting_one.id").strip("'")
    for word in ("result", "output", "retry"):
        assert f"%openruntime {word} {done}" in kernel.complete(f"%openruntime {word} task_|")
    for word in ("cancel", "wait"):
        offered = kernel.complete(f"%openruntime {word} |")
        assert f"%openruntime {word} {live}" in offered
        assert f"%openruntime {word} {done}" not in offered
        assert f"%openruntime {word} waiting_one" in offered, "the variable with its handle"
    kernel.run("waiting_one.cancel()")
    assert f"%openruntime cancel {live}" not in kernel.complete("%openruntime cancel |"), "ended tasks are not offered"


def test_tab_offers_known_devices(server_kernel: Kernel) -> None:
    server_kernel.run("%openruntime status")
    assert "%%openruntime --device device_0" in server_kernel.complete("%%openruntime --device dev|\n1")


def test_other_completion_is_unaffected(server_kernel: Kernel) -> None:
    server_kernel.run("weights_of_the_test = [1]")
    assert "weights_of_the_test" in server_kernel.complete("weights_of|")
    assert "%openruntime" in server_kernel.complete("%openrun|")
    assert "weights_of_the_test.append" in server_kernel.complete("%%openruntime --in weights_of_the_test\nweights_of_the_test.app|")


def test_tab_starts_no_runtime_and_unload_removes_completion(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with running_kernel(home) as kernel:
        assert kernel.complete("%openruntime vector_operations oper|") == ["%openruntime vector_operations operations="]
        assert kernel.complete("%openruntime cancel task_|") == []
        assert not home.data_dir.exists()
        kernel.run("%unload_ext openruntime_jupyter")
        assert "%openruntime status" not in kernel.complete("%openruntime sta|")
