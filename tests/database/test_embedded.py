"""The embedded server, in real processes: two at once, killed, with odd paths, as root and not."""

import hashlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import psycopg
import pytest

from conftest import place_for_a_server
from loracomp.config import load_settings
from loracomp.database import embedded
from loracomp.errors import DatabaseUnavailableError

START = (
    "import sys; from pathlib import Path; from loracomp.database import embedded; "
    "print(embedded.start(Path(sys.argv[1])))"
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Data folder of a stopped server, in a place whose name has a space, a quote and a percent sign."""
    with place_for_a_server() as place:
        folder = place.with_name("it's 100 %") / "postgres"
        embedded.start(folder)
        embedded.stop(folder)
        yield folder
        embedded.stop(folder)


def answers(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def postmaster(folder: Path) -> int:
    return int((folder / "postmaster.pid").read_text().splitlines()[0])


def wait_for_the_end_of(process: int) -> None:
    """Wait for the end of a process that need not be our child; a zombie counts as ended."""
    for _ in range(6000):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], text=True, capture_output=True, check=False)
        if state.stdout.strip()[:1] in ("", "Z"):
            return
        time.sleep(0.01)
    pytest.fail(f"process {process} goes on")


def test_it_goes_on_when_its_starter_ends_and_starting_again_changes_nothing(folder: Path) -> None:
    url = subprocess.check_output([sys.executable, "-c", START, folder], text=True).strip()
    assert answers(url)
    assert embedded.is_running(folder)
    running = postmaster(folder)
    assert embedded.start(folder) == url
    assert postmaster(folder) == running


def test_one_that_is_slow_to_answer_is_not_taken_for_dead(folder: Path) -> None:
    url = embedded.start(folder)
    running = postmaster(folder)
    os.kill(running, signal.SIGSTOP)
    waking = Timer(4, os.kill, (running, signal.SIGCONT))
    waking.start()
    assert embedded.start(folder) == url
    waking.join()
    assert postmaster(folder) == running


def test_stop_ends_open_connections_and_leaves_no_process_and_no_socket(folder: Path) -> None:
    url = embedded.start(folder)
    running = postmaster(folder)
    folder.parent.chmod(0o700)  # whoever starts it as root stops it as root, too
    with psycopg.connect(url) as connection:
        assert embedded.stop(folder)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    wait_for_the_end_of(running)
    assert [path.name for path in folder.glob(".s.PGSQL*")] == []
    assert [path.name for path in folder.parent.iterdir()] == ["postgres"]
    assert not embedded.is_running(folder)
    assert not embedded.stop(folder)


def test_several_processes_make_one_server_at_once_where_another_was_killed_half_way(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    starters = [
        subprocess.Popen([sys.executable, "-c", START, folder], text=True, stdout=subprocess.PIPE) for _ in range(3)
    ]
    urls = {starter.communicate(timeout=120)[0].strip() for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0]
    assert len(urls) == 1
    assert answers(urls.pop())
    embedded.stop(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["postgres"]


def test_it_starts_again_after_it_was_killed(folder: Path) -> None:
    with psycopg.connect(embedded.start(folder), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 1")
    os.kill(postmaster(folder), signal.SIGKILL)
    wait_for_the_end_of(postmaster(folder))
    assert not embedded.is_running(folder)
    with psycopg.connect(embedded.start(folder)) as connection:
        assert connection.execute("SELECT * FROM kept").fetchall() == [(1,)]


@pytest.fixture
def moved(folder: Path) -> Iterator[Path]:
    """The data folder of a stopped server, where its path is too long for a socket."""
    long = folder.with_name("x" * 100) / "postgres"
    long.parent.mkdir()
    embedded.stop(folder)
    folder.rename(long)
    yield long
    embedded.stop(long)
    long.rename(folder)
    long.parent.rmdir()


def test_a_path_too_long_for_a_socket_gets_a_short_one(moved: Path) -> None:
    url = embedded.start(moved)
    sockets = Path(psycopg.conninfo.conninfo_to_dict(url)["host"])
    assert answers(url)
    assert sockets.exists()
    embedded.stop(moved)
    assert not sockets.exists()


def make_open_to_all(place: Path) -> None:
    """A folder such as another login would make; if this process is root, it is nobody's."""
    place.mkdir()
    place.chmod(0o777)
    if os.geteuid() == 0:
        os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)


def test_a_folder_that_another_login_made_first_is_not_used_for_the_socket(moved: Path) -> None:
    known = hashlib.sha256(os.fsencode(moved)).hexdigest()[:16]  # a name that could be known beforehand
    planted = Path(tempfile.gettempdir()) / f"loracomp-{known}"
    make_open_to_all(planted)
    try:
        url = embedded.start(moved)
    finally:
        shutil.rmtree(planted)
    sockets = Path(psycopg.conninfo.conninfo_to_dict(url)["host"])
    assert sockets != planted
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert sockets.stat().st_uid == moved.stat().st_uid
    with psycopg.connect(url) as connection:
        assert connection.execute("SHOW unix_socket_permissions").fetchone() == ("0700",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another login")
def test_another_login_of_the_machine_cannot_connect(moved: Path) -> None:
    url = embedded.start(moved)
    sockets = Path(psycopg.conninfo.conninfo_to_dict(url)["host"])
    sockets.chmod(0o711)  # even if the folder lets it through
    nobody = pwd.getpwnam("nobody")
    become = f"os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})"
    program = f"import os, sys, psycopg; {become}; psycopg.connect(sys.argv[1])"
    tried = subprocess.run([sys.executable, "-c", program, url], text=True, capture_output=True, check=False)
    sockets.chmod(0o700)
    assert tried.returncode != 0
    assert "Permission denied" in tried.stderr


def test_a_socket_in_a_folder_that_others_may_enter_is_not_asked(moved: Path) -> None:
    """After a crash, another login may put a server of its own where the socket was."""
    url = embedded.start(moved)
    sockets = Path(psycopg.conninfo.conninfo_to_dict(url)["host"])
    os.kill(postmaster(moved), signal.SIGKILL)
    wait_for_the_end_of(postmaster(moved))
    shutil.rmtree(sockets)
    make_open_to_all(sockets)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sockets / ".s.PGSQL.5432"))
        listener.listen()
        listener.settimeout(0)
        assert not embedded.is_running(moved)
        again = embedded.start(moved)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert psycopg.conninfo.conninfo_to_dict(again)["host"] != str(sockets)
    assert (sockets / ".s.PGSQL.5432").exists()  # what is another's is left alone
    shutil.rmtree(sockets)


def test_what_is_wrong_is_said_in_words(tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    (older / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseUnavailableError, match="made by PostgreSQL 16 and the installed one is 18: move"):
        embedded.start(older)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "PG_VERSION").write_text("18\n")
    with pytest.raises(DatabaseUnavailableError, match="pg_ctl failed"):
        embedded.start(broken)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailableError, match=r"can't be used: .*File exists"):
        embedded.start(tmp_path / "file" / "postgres")


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run it as a plain user already")
def test_a_plain_user_starts_and_stops_one_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("plain")
    for folder in (home, home.parent, home.parent.parent):
        folder.chmod(0o711)
    nobody = pwd.getpwnam("nobody")
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    # The interpreter and the temporary files may lie where nobody can't go: it becomes nobody when all is imported.
    become = (
        f"embedded.psql_path(); import os, tempfile; tempfile.tempdir = {str(home)!r}; "
        f"os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid}); "
    )
    program = START.replace("print", become + "print") + "; print(embedded.stop(Path(sys.argv[1])))"
    printed = subprocess.check_output([sys.executable, "-c", program, home / "postgres"], text=True)
    assert printed.splitlines()[-1] == "True"
    assert (home / "postgres" / "PG_VERSION").stat().st_uid == nobody.pw_uid


def test_a_database_is_not_kept_among_the_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """People and programs delete caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORACOMP_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert embedded.data_folder(load_settings()) == Path("/home/alice/.local/share/loracomp/postgres")
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/alice")
    assert embedded.data_folder(load_settings()) == Path("/srv/alice/loracomp/postgres")


def test_reset_deletes_a_database_once_it_was_said_twice() -> None:
    with place_for_a_server() as folder:
        embedded.start(folder)
        environment = {**os.environ, "LORACOMP_HOME": str(folder.parent)}
        command = [sys.executable, "-c", "from loracomp.cli import main; main()", "db", "reset"]
        refused = subprocess.run(command, env=environment, input="n\n", text=True, capture_output=True, check=False)
        assert refused.returncode != 0 and f"Delete the database in {folder}" in refused.stderr
        assert embedded.is_running(folder)
        subprocess.run(command, env=environment, input="y\n", text=True, capture_output=True, check=True)
        assert not folder.exists()
        assert not embedded.reset(folder)


MAKE_USER = """
import sys, time
from loracomp.database import embedded
embedded._USER = sys.argv[1]
embedded._MAKING_USER_S = float(sys.argv[2])
embedded._package()
time.sleep(max(0, float(sys.argv[3]) - time.time()))
print(embedded._system_user())
"""


def make_users(name: str, patience: float, count: int) -> list[subprocess.Popen[str]]:
    begin = str(time.time() + 2)
    command = [sys.executable, "-c", MAKE_USER, name, str(patience), begin]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(count)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a user")
def test_processes_that_start_servers_at_once_on_a_new_machine_make_one_user() -> None:
    name = f"lc{os.getpid()}"
    try:
        found = [(*process.communicate(timeout=60), process.returncode) for process in make_users(name, 30, 6)]
        assert found == [(f"{name}\n", "", 0)] * 6
    finally:
        subprocess.run(["userdel", name], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a user")
def test_a_user_that_cannot_be_made_is_told_in_a_sentence() -> None:
    (process,) = make_users("no name", 0, 1)
    assert (
        "the system user no name, as whom root runs the embedded Postgres, can't be made: useradd: "
        in (process.communicate(timeout=60)[1])
    )
