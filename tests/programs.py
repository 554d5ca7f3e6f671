"""Programs of their own processes, without the seconds that importing the frameworks takes each of them.

A process that has imported what programs import, and nothing of gradindex, forks one for each program. It has a working
folder, variables, output, exit code and end of its own. Where that the imports happen is the point, where one may fail
or where the variables that Python reads at its start are set, use `subprocess`.
"""

import atexit
import builtins
import functools
import gc
import importlib
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

FOR_ALL = ("sklearn.datasets", "sklearn.manifold", "scipy.stats", "matplotlib.pyplot", "numba", "typer")
FRAMEWORKS = {
    "torch": ("torch", "torch._dynamo", "transformers"),
    "tensorflow": ("tensorflow", "keras"),
}


def run(
    arguments: Iterable[object],
    *,
    framework: str = "torch",
    cwd: Path | str | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 300,
) -> "subprocess.CompletedProcess[str]":
    """Run what follows ``python`` in a command line, as `subprocess.run` does with captured text.

    Parameters
    ----------
    arguments
        Options ``-W``, then ``-c code``, ``-m module`` or a script, then what those are given.
    framework
        "torch" or "tensorflow": what has been imported.
    cwd, env
        Working folder and variables; this process's where they are None.
    timeout
        Seconds.

    Raises
    ------
    subprocess.TimeoutExpired
        If the program takes longer; it is killed.
    """
    return _server(framework).run(list(map(str, arguments)), cwd, env, timeout)


@functools.cache
def _server(framework: str) -> "_Server":
    return _Server(framework)


class _Server:
    def __init__(self, framework: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
        )
        atexit.register(self._close)

    def _close(self) -> None:
        self._process.communicate()

    def _line(self, timeout: float | None = None) -> str | None:
        """Return a line of the server, or None if there is none for some seconds."""
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process that starts programs ended: {self._process.wait()}.")
        return line.decode().strip()

    def run(
        self, arguments: list[str], cwd: Path | str | None, env: dict[str, str] | None, timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given = {
                "arguments": arguments,
                "cwd": str(cwd or Path.cwd()),
                "env": {**(os.environ if env is None else env)},
                "files": [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)],
            }
            self._process.stdin.write(json.dumps(given).encode() + b"\n")
            child = int(self._line())
            code = self._line(timeout)
            if code is None:
                os.kill(child, 9)
                self._line()
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode())
            if code is None:
                raise subprocess.TimeoutExpired(arguments, timeout, *said)
            return subprocess.CompletedProcess(arguments, int(code), *said)


def _serve(framework: str) -> dict[str, object]:
    """Fork a process for each line of the standard input, and return there what the line says."""
    for name in (*FRAMEWORKS[framework], *FOR_ALL):
        try:
            importlib.import_module(name)
        except ImportError:  # an optional package
            continue
    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            return json.loads(line)
        _say(child)
        _say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.exit()


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _become(given: dict) -> None:
    """Run a program as `__main__` in this process."""
    os.chdir(given["cwd"])
    os.environ.clear()
    os.environ.update(given["env"])
    streams = [os.open(os.devnull, os.O_RDONLY), *(os.open(path, os.O_WRONLY) for path in given["files"])]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    sys.path[:1] = [path for path in given["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    first, *rest = given["arguments"]
    while first == "-W":
        action, _, kind, *_ = [*rest[0].split(":"), "", ""]
        warnings.filterwarnings(action, category=getattr(builtins, kind or "Warning"))
        _, first, *rest = rest
    if first == "-c":
        code, *rest = rest
        sys.argv = ["-c", *rest]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = type(sys)("__main__")
        exec(compile(code, "<string>", "exec"), vars(main))
    elif first == "-m":
        name, *rest = rest
        sys.argv = [name, *rest]
        sys.path.insert(0, given["cwd"])
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


def _end(codes: list[int]) -> None:
    """End this process without clearing up after the frameworks, if its program came to its end."""
    if codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(codes[0])


if __name__ == "__main__":
    program, codes = _serve(sys.argv[1]), []
    atexit.register(_end, codes)  # after all others, which are registered later
    try:
        _become(program)
        codes.append(0)
    except SystemExit as end:
        if not isinstance(end.code, int):  # None, or a sentence that Python prints
            raise
        codes.append(end.code)
