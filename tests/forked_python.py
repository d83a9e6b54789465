"""Python programs in processes of their own that find torch imported, which takes seconds, and fusedlstm not.

Each is forked from a process that has imported torch, once for all tests of a test process, and has run nothing of it.
What a process reads at its very start (LD_LIBRARY_PATH), or before it imports torch, is not for these.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# A child leaves the loop, and ends as an interpreter does whose program is over.
SERVER = """if True:
    import gc, json, os, sys
    import torch
    gc.freeze()  # a child that ends need not go through all that is torch's
    while line := sys.stdin.readline():
        if not (child := os.fork()):
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        sys.exit()
    code, sys.argv[1:], folder, environment, *files = json.loads(line)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    exec(compile(code, "<string>", "exec"))
"""


@functools.cache
def _server():
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def run_python(code, *arguments, cwd=".", **environment) -> subprocess.CompletedProcess:
    """Runs a program to its end.

    Args:
        arguments: sys.argv from 1 on.
        cwd: its folder.
        environment: variables on top of those of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        variables = os.environ | {name: str(value) for name, value in environment.items()}
        request = [code, list(map(str, arguments)), os.path.abspath(cwd), dict(variables), *map(str, files)]
        server = _server()
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        try:
            status = int(server.stdout.readline())
        except BaseException:  # out of time: its answer would be taken for that of the next
            server.kill()
            _server.cache_clear()
            raise
        return subprocess.CompletedProcess(code, status, *(file.read_text() for file in files))
