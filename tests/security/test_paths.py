"""Files and folders that other users could have made or changed: they are refused, and links are never followed for changes."""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime import permissions
from openruntime_jupyter.runtime.arrays import spool
from openruntime_jupyter.runtime.permissions import UnsafePath, private_file, private_folder
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage import store
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.tasks import TaskState
from tests.runtime.array_support import store_in
from tests.runtime.history_support import make_task, opened, states
from tests.runtimes import until

OTHER = next((user.pw_uid for user in pwd.getpwall() if user.pw_uid not in (0, os.geteuid())), None)
NOBODY_KNOWN = 3_999_999_999
needs_chown = pytest.mark.skipif(os.geteuid() != 0 or OTHER is None, reason="only root can give files to other users")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of this user that others may read."""
    folder = tmp_path / "victim"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@pytest.mark.parametrize("secret", [False, True])
async def test_linked_spool_name_changes_no_other_folder(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, secret: bool
) -> None:
    memory = tmp_path / "shm"
    memory.mkdir()
    monkeypatch.setattr(spool, "MEMORY", memory)
    monkeypatch.setattr(spool, "in_memory", lambda path: True)
    data = tmp_path / "data"
    private_folder(data)
    key = b""
    if secret:  # as if another user knew it
        key = b"k" * 16
        (data / "spool.key").write_bytes(key)
    name = f"openruntime-{os.geteuid()}-{hashlib.sha256(key + os.fsencode(data.absolute())).hexdigest()[:12]}"
    (memory / name).symlink_to(victim)
    async with store_in(data) as arrays:
        assert arrays.problem is None
        assert [place.root == data / "arrays" for place in arrays._spool.places] == ([True] if secret else [False, True])
    assert mode(victim) == 0o755
    assert not list(victim.iterdir())


async def test_spool_names_are_the_same_for_runtimes_of_a_data_folder(tmp_path: Path) -> None:
    names = [spool.Spool(Settings(data_dir=private_folder(tmp_path / "data")), f"rt_{index}")._key() for index in range(2)]
    assert names[0] == names[1]
    assert len(names[0]) == 16
    assert mode(tmp_path / "data" / "spool.key") == 0o600


def test_private_folder_and_file_never_change_what_a_link_names(tmp_path: Path, victim: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(victim)
    with pytest.raises(UnsafePath, match="it is a link"):
        private_folder(link, links=False)
    file = victim / "file"
    file.touch(0o644)
    (tmp_path / "file").symlink_to(file)
    with pytest.raises(UnsafePath, match="it is a link"):
        private_file(tmp_path / "file")
    permissions.close_to_others(tmp_path / "file")
    assert (mode(victim), mode(file)) == (0o755, 0o644)


def test_own_link_to_data_folder_is_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "link").symlink_to(victim)
    private_folder(tmp_path / "link")
    assert mode(victim) == 0o700


@pytest.mark.parametrize("change", [0o777, 0o1777])
async def test_data_folder_that_others_can_write_is_refused(tmp_path: Path, change: int) -> None:
    async with opened(tmp_path / "data", "rt_dead") as history:
        await history.commit(make_task(operation="python", parameters={"code": "1"}))
    (tmp_path / "data").chmod(change)
    with pytest.raises(StorageUnavailable, match=r"every user can write to it.* make it writable for this user and no other"):
        await Runtime(Settings(data_dir=tmp_path / "data")).start()
    history = History(Settings(data_dir=tmp_path / "data"), "rt_new")
    with pytest.raises(StorageUnavailable, match="every user can write to it"):
        history.open()
    await history.close()
    assert set(states(tmp_path / "data").values()) == {"pending"}


@needs_chown
@pytest.mark.parametrize("what", ["folder", "link", "history.sqlite3", "history.sqlite3-wal"])
async def test_data_of_another_user_is_refused(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert OTHER is not None
    monkeypatch.setattr(store, "RETRY_SECONDS", 0.05)
    data = tmp_path / "data"
    async with opened(data, "rt_dead") as history:
        await history.commit(make_task())
        content = (data / "history.sqlite3-wal").read_bytes()
    (data / "history.sqlite3-wal").write_bytes(content)
    if what == "folder":
        os.chown(data, OTHER, -1)
    elif what == "link":
        data.rename(tmp_path / "real")
        data.symlink_to(tmp_path / "real")
        os.lchown(data, OTHER, -1)
    else:
        os.chown(data / what, OTHER, -1)
    history = History(Settings(data_dir=data), "rt_new")
    with pytest.raises(StorageUnavailable, match=f"belongs to the user {pwd.getpwuid(OTHER).pw_name}"):
        history.open()
    assert "belongs to the user" in (history.problem or "")
    if what.startswith("history"):
        with pytest.raises(StorageUnavailable, match="belongs to the user"):
            await history._read(lambda connection: None)
        (data / what).unlink()
        await history.commit(make_task())
        await until(lambda: history.problem is None, what="the problem's end, by itself")
    await history.close()


@pytest.mark.parametrize("spoil", ["link", "mode"])
async def test_history_file_that_is_a_link_or_writable_for_all_is_refused(tmp_path: Path, spoil: str) -> None:
    data = tmp_path / "data"
    async with opened(data, "rt_dead") as history:
        await history.commit(make_task())
    path = data / "history.sqlite3"
    if spoil == "link":
        path.rename(tmp_path / "elsewhere.sqlite3")
        path.symlink_to(tmp_path / "elsewhere.sqlite3")
    else:
        path.chmod(0o666)
    history = History(Settings(data_dir=data), "rt_new")
    with pytest.raises(StorageUnavailable, match="it is a link" if spoil == "link" else "every user can write to it") as caught:
        history.open()
    assert "choose another `data_dir`" in str(caught.value)
    await history.close()


def umask_of_a_private_group(folder: Path) -> None:
    folder.chmod(0o775)


def set_group_id_volume_of_root(folder: Path) -> None:
    os.chown(folder, 0, 100)
    folder.chmod(0o2775)


def unknown_owner_of_a_container(folder: Path) -> None:
    os.chown(folder, NOBODY_KNOWN, NOBODY_KNOWN)
    folder.chmod(0o755)


@pytest.mark.parametrize("prepare", [umask_of_a_private_group, set_group_id_volume_of_root, unknown_owner_of_a_container])
async def test_usual_folders_of_users_and_containers_are_accepted(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    if prepare is not umask_of_a_private_group and os.geteuid() != 0:
        pytest.skip("only root can give files to other users")
    data = tmp_path / "data"
    async with opened(data, "rt_dead") as history:
        await history.commit(make_task(TaskState.COMPLETED))
    prepare(data)
    async with opened(data) as history:
        await history.commit(make_task())
        assert history.problem is None


def test_new_empty_folder_is_made_private_whatever_the_umask(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    private_folder(tmp_path / "data")
    assert mode(tmp_path / "data") == 0o700
    umask = os.umask(0o777)
    try:
        private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(umask)
    assert mode(tmp_path / "a" / "b") == mode(tmp_path / "a") == 0o700
