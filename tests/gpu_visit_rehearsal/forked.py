"""`python forked.py -m MODULE ...` runs a module in a process forked from one that has imported torch, which takes
seconds, and stands for it: with its streams, to its end, which is that of the module, and no longer than itself.

`python forked.py` is the process that has imported torch and nothing else. FORKED: the socket where it is found.
"""

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys


def ask(words):
    """Ends as the module does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["FORKED"])
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        connection.sendall(json.dumps([words, os.getcwd(), dict(os.environ)]).encode() + b"\n")
        status = int(connection.makefile().readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def serve():
    """Until it is killed. A child leaves the loop for each who asks."""
    import torch  # noqa: F401

    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ["FORKED"])
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass  # that its time is counted
    keep(connection)


def keep(connection):
    """Runs what is asked for in a child, which ends with who asked; in the child it returns when that is done."""
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    words, folder, environment = json.loads(connection.makefile().readline())
    if child := os.fork():
        os.setpgid(child, child)
        for stream in streams:
            os.close(stream)
        select.select([connection, os.pidfd_open(child)], [], [])
        os.killpg(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):
            connection.sendall(f"{status}\n".encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:1] = ["", *environment["PYTHONPATH"].split(os.pathsep)]
    option, module, *arguments = words
    assert option == "-m"
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    ask(sys.argv[1:]) if sys.argv[1:] else serve()
