"""Hosts in JupyterLab: the status bar, the list of running things, and the dashboard."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.browser.chromium import new_page, run
from tests.browser.lab import LAB, recorded
from tests.engines.hosts.sshd import ssh_that
from tests.support import Home, running_server, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SLEEP = "import time; time.sleep(600)"
HOSTS = """case "$1" in
*gpu1) echo 'ssh: connect to host gpu1 port 22: Operation timed out' >&2; exit 255;;
*gpu2) echo "ModuleNotFoundError: No module named 'openruntime_jupyter'" >&2; exit 1;;
esac
exec sh -c "$2"
"""
"""The host mac2 is this machine, gpu1 sleeps, and gpu2 has no package."""


def test_page_says_where_tasks_run_and_which_hosts_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(tmp_path, monkeypatch, HOSTS)
    config_dir = tmp_path / "config"
    config_dir.mkdir()
    (config_dir / "hosts.toml").write_text(f'[mac2]\npython = "{sys.executable}"\nenv = {{ OPENRUNTIME_DATA_DIR = "{tmp_path}/mac2" }}\n')
    config = {"OpenRuntimeApp": {"engine": "ssh", "hosts": ["mac2", "gpu1", "me@gpu2"], "spare_workers": 0}}
    environment = {"OPENRUNTIME_CONFIG_DIR": str(config_dir), "PATH": os.environ["PATH"]}
    with running_server(Home(tmp_path / "home"), LAB, config=config, environment=environment, healthy=False) as server:

        async def story() -> None:
            async with new_page(1280, 800) as page:
                errors = recorded(page)
                await page.goto(f"{server.root}/lab?token={server.token}")
                line = page.locator(".jp-OpenRuntime-status:visible")
                await expect(line).to_contain_text("1 running · 0 waiting · 1 on mac2, gpu1 lost, gpu2 refused ·")
                await page.locator(".jp-SideBar [data-id='jp-running-sessions']").click()
                await expect(page.locator(".jp-RunningSessions-item").filter(has_text="long")).to_contain_text("on mac2")
                await line.click()
                hosts = page.get_by_role("region", name="Hosts")
                await expect(hosts).to_contain_text("3 hosts, 1 lost, 1 refused")
                await expect(hosts.get_by_role("listitem", name="gpu1")).to_contain_text("It does not respond (ssh: connect to host gpu1")
                await expect(hosts.get_by_role("listitem", name="gpu2")).to_contain_text("run `ssh me@gpu2 python3 -m pip install")
                await expect(page.locator(".or-tasks tbody").filter(has_text="long")).to_contain_text("mac2")
                assert [error for error in errors if "openruntime" in error] == []

        def states() -> list[str]:
            return [host["state"] for host in server.get("/hosts")["hosts"]]

        wait_until(lambda: states() == ["lost", "refused", "ready"], 60, lambda: str(server.get("/hosts")))
        server.submit("python", {"code": SLEEP}, name="long", device_preference="mac2", wait=False)
        run(story())
