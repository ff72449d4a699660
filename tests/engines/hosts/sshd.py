"""Real OpenSSH server on loopback, and the `ssh` that logs in there."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import free_port, wait_until

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SSH = shutil.which("ssh")


def ssh_that(folder: Path, patch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a shell script before the real `ssh` in the search path. Its `$1` is the destination and `$2` the command."""
    file = folder / "ssh"
    file.write_text(f'#!/bin/sh\nwhile [ "$1" != -- ]; do options="$options $1"; shift; done; shift\n{script}\n')
    file.chmod(0o755)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return file


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run an OpenSSH server with a new key, and yield the destination of `ssh`; skip the test without such a server."""
    if SSHD is None or SSH is None:
        pytest.skip("no OpenSSH server: apt-get install openssh-server")
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "config").write_text(
        f"IdentityFile {folder}/key\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
    )
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/key.pub\nStrictModes no\nUsePAM no\n"
        "PidFile none\nPermitRootLogin yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    log = folder / "log"
    with log.open("wb") as opened:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=opened)
    try:
        wait_until(lambda: "Server listening" in log.read_text() or process.poll() is not None, 20, log.read_text)
        assert process.poll() is None, log.read_text()
        yield f"ssh://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
