"""Runs programs of the tests as forks of one process that has already imported the slow modules.

`forked.py run SOCKET PROGRAM ...` stands for a program: `loracomp`, or a script. It hands its arguments, folder,
variables and open files to a fork of `forked.py serve SOCKET`, then its signals, and ends with the fork's exit code.
"""

import atexit
import gc
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Thread

SLOW = (
    "loracomp.database.schema",
    "loracomp.replay",
    "loracomp.worker.start",
    "rich.progress",
    "typer",
    "sentence_transformers",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@cache
def programs() -> Path:
    """Return a folder with the commands `loracomp` and `script FILE`, whose runs are forks of a process that ends with
    this one. Processes of xdist use the commands of the process that started them.
    """
    if given := os.environ.get("FORKED_PROGRAMS"):
        return Path(given)
    folder = tempfile.TemporaryDirectory(prefix="loracomp-forked-")
    path = f"{folder.name}/socket"
    server = subprocess.Popen([sys.executable, __file__, "serve", path], stdout=subprocess.PIPE)
    atexit.register(folder.cleanup)
    atexit.register(server.kill)
    assert server.stdout and server.stdout.readline() == b"ready\n"
    runs = shlex.join([sys.executable, "-IS", __file__, "run", path])
    for name, program in (("loracomp", "loracomp "), ("script", "")):
        command = Path(folder.name) / name
        command.write_text(f'#!/bin/sh\nexec {runs} {program}"$@"\n')
        command.chmod(0o755)
    return Path(folder.name)


def run(path: str, arguments: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as fork:
        fork.connect(path)
        request = json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(fork, [len(request).to_bytes(4)], [0, 1, 2])
        fork.sendall(request)
        for number in PASSED_ON:
            signal.signal(number, lambda received, _: fork.sendall(bytes([received])))
        code = int(fork.recv(16) or 1)
    if code < 0:  # The program ended by a signal, so this process does too.
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def serve(path: str) -> None:
    """Serve for ever; returns only in forks, each of which becomes a program."""
    with socket.create_server(path, family=socket.AF_UNIX) as server:
        print("ready", flush=True)  # callers wait until it accepts
        import_what_takes_seconds()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
        while True:
            caller, _ = server.accept()
            if not os.fork():
                break
            caller.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    become(caller)


def import_what_takes_seconds() -> None:
    """Import the slow modules, except the modules of the command line, which read the terminal and the environment when
    they are imported."""
    from loracomp.model.cpu import wait_briefly

    wait_briefly()
    for module in SLOW:
        import_module(module)
    gc.freeze()


def become(caller: socket.socket) -> None:
    """Fork once more: the parent passes on the caller's signals, the child returns as what the caller asks for."""
    size, files, _, _ = socket.recv_fds(caller, 4, 3)
    arguments, folder, variables = json.loads(caller.recv(int.from_bytes(size), socket.MSG_WAITALL))
    if program := os.fork():
        attend(caller, program)
    caller.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for name, number in (("stdout", 1), ("stderr", 2)):  # the old ones may think that they can seek in a pipe
        old = getattr(sys, name)
        setattr(sys, name, open(number, "w", encoding=old.encoding, errors=old.errors, closefd=False))  # noqa: SIM115 - until the process ends
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = arguments


def attend(caller: socket.socket, program: int) -> None:
    """End this process when the program has ended, and the program when the caller has gone."""

    def pass_on() -> None:
        while received := caller.recv(1):
            os.kill(program, received[0])
        with suppress(ProcessLookupError):
            os.kill(program, signal.SIGKILL)

    Thread(target=pass_on, daemon=True).start()
    _, status = os.waitpid(program, 0)
    with suppress(BrokenPipeError):
        caller.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def program() -> int:
    """Run what the caller asks for, and return its exit code: `loracomp`, a worker of xdist (its text comes last), or a
    script."""
    try:
        if sys.argv[0] == "loracomp":
            from loracomp.cli import main

            main()
        elif sys.argv[0] == "worker":
            exec(sys.argv[-1], {"__name__": "__main__"})
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(code: int) -> None:
    """End at once, because the interpreter's normal shutdown takes longer than most commands."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    mode, path, *arguments = sys.argv[1:]
    if mode == "run":
        sys.exit(run(path, arguments))
    serve(path)
    end(program())
