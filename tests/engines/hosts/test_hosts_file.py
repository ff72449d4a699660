"""Hosts as users name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from openruntime_jupyter.engines.hosts.finder import InvalidHosts
from openruntime_jupyter.engines.hosts.hosts_file import SshHost, ssh_hosts


def test_names_are_the_shortest_that_are_unique(tmp_path: Path) -> None:
    destinations = ["mac2.local", "me@gpu1", "gpu2.a.edu", "ssh://you@gpu2.b.edu:2222", "10.0.0.7", "10.0.0.8", "gpu"]
    names = [host.name for host in ssh_hosts(destinations, tmp_path / "missing.toml")]
    assert names == ["mac2", "gpu1", "gpu2.a.edu", "gpu2.b.edu", "10.0.0.7", "10.0.0.8", "host-gpu"]
    names = [host.name for host in ssh_hosts(["::1", "me@[2001:db8::7]:22", "fe80::1%en0"], tmp_path / "missing.toml")]
    assert names == ["1", "2001-db8-7", "fe80-1-en0"]


@pytest.mark.parametrize(
    ("destination", "login", "known"),
    [
        ("mac2.local", "mac2.local", "mac2.local"),
        ("me@gpu1:2222", "-p 2222 me@gpu1", "[gpu1]:2222"),
        ("ssh://me@gpu1:22", "-p 22 me@gpu1", "gpu1"),
        ("::1", "::1", "::1"),
        ("me@fe80::1%en0", "me@fe80::1%en0", "fe80::1%en0"),
        ("[2001:db8::7]", "2001:db8::7", "2001:db8::7"),
        ("ssh://me@[2001:db8::7]:2222", "-p 2222 me@2001:db8::7", "[2001:db8::7]:2222"),
    ],
)
def test_ssh_gets_users_addresses_and_ports_in_its_form(destination: str, login: str, known: str, tmp_path: Path) -> None:
    (host,) = ssh_hosts([destination], tmp_path / "missing.toml")
    assert " ".join(host.login) == login
    assert host.known_host == known


def test_hosts_file_sets_python_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "hosts.toml"
    file.write_text('["me@gpu1"]\npython = "~/venv/bin/python"\nenv = { B = "2 3", A = "1" }\n\n[other]\npython = "python3.12"\n')
    assert ssh_hosts(["me@gpu1", "mac2"], file) == [
        SshHost("gpu1", "me@gpu1", "~/venv/bin/python", (("A", "1"), ("B", "2 3"))),
        SshHost("mac2", "mac2"),
    ]


@pytest.mark.parametrize(
    "destination", ["-oProxyCommand=id", "me@-x", "gpu1 rm", "gpu1;id", "", "gpu1:port", "gpu1:", "[gpu1]:22", "a@b@c", "$(id)"]
)
def test_only_destinations_reach_ssh(destination: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidHosts, match="is not a destination of ssh"):
        ssh_hosts([destination], tmp_path / "missing.toml")


def test_one_machine_may_not_be_there_twice(tmp_path: Path) -> None:
    with pytest.raises(InvalidHosts, match="'gpu1' is there 2 times"):
        ssh_hosts(["me@gpu1", "you@gpu1"], tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gpu1", "can't be read"),
        ("gpu1 = 3", "must be a table"),
        ("[gpu1]\npyhton = '/usr/bin/python3'", "unknown key 'pyhton'"),
        ("[gpu1]\npython = 3", "python must be"),
        ("[gpu1]\npython = 'a\\nb'", None),
        ('[gpu1]\npython = "a\\nb"', "python must be"),
        ("[gpu1]\nenv = { A = 1 }", "env must be"),
        ("[gpu1]\nenv = { 'A B' = '1' }", "env must be"),
    ],
)
def test_wrong_hosts_file_is_rejected_with_its_place(text: str, message: str | None, tmp_path: Path) -> None:
    file = tmp_path / "hosts.toml"
    file.write_text(text)
    if message is None:
        assert ssh_hosts(["gpu1"], file)[0].python == "a\\nb"
        return
    with pytest.raises(InvalidHosts, match=message) as caught:
        ssh_hosts(["gpu1"], file)
    assert str(file) in str(caught.value)
