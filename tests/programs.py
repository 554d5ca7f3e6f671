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
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOR_ALL = ("sklearn.datasets", "sklearn.manifold", "scipy.stats", "matplotlib.pyplot", "numba", "typer")
FRAMEWORKS = {
    "torch": ("torch", "torch._dynamo", "transformers"),
    "tensorflow": ("tensorflow", "keras"),
}


class Program:
    """A program at work."""

    def __init__(self, server: "_Server", arguments: list[str], given: dict[str, object]) -> None:
        self._server, self._arguments = server, arguments
        self._files = os.memfd_create("output"), os.memfd_create("errors")
        given["files"] = [f"/proc/{os.getpid()}/fd/{file}" for file in self._files]
        self.pid = int(server.ask(given))

    @property
    def said(self) -> tuple[str, str]:
        """What it has written so far, to its output and to its errors."""
        out, err = (os.pread(file, os.fstat(file).st_size, 0).decode() for file in self._files)
        return out, err

    def finish(self, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Wait for its end.

        Raises
        ------
        subprocess.TimeoutExpired
            If that takes more seconds; the program is killed.
        """
        code = self._server.ask({"end": self.pid}, timeout)
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            self._server.line()
        out, err = self.said
        for file in self._files:
            os.close(file)
        if code is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout, out, err)
        return subprocess.CompletedProcess(self._arguments, int(code), out, err)


def start(
    arguments: Iterable[object],
    *,
    framework: str = "torch",
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
) -> Program:
    """Start what follows ``python`` in a command line.

    Parameters
    ----------
    arguments
        Options ``-W``, then ``-c code``, ``-m module`` or a script, then what those are given.
    framework
        "torch" or "tensorflow": what has been imported.
    cwd, env
        Working folder and variables; this process's where they are None.
    """
    given = {"arguments": list(map(str, arguments)), "cwd": str(cwd or Path.cwd())}
    return Program(_server(framework), given["arguments"], {**given, "env": dict(os.environ if env is None else env)})


def run(arguments: Iterable[object], *, timeout: float = 300, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, as `subprocess.run` does with captured text; `options` are those of `start`."""
    return start(arguments, **options).finish(timeout)


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
        atexit.register(self._process.communicate)

    def ask(self, given: dict[str, object], timeout: float | None = None) -> str | None:
        """Return the answer, or None if there is none for some seconds."""
        self._process.stdin.write(json.dumps(given).encode() + b"\n")
        return self.line(timeout)

    def line(self, timeout: float | None = None) -> str | None:
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process that starts programs ended: {self._process.wait()}.")
        return line.decode().strip()


def _serve(framework: str) -> dict[str, object]:
    """Fork a process for each program that the standard input names, and return there what it says of it."""
    for name in (*FRAMEWORKS[framework], *FOR_ALL):
        try:
            importlib.import_module(name)
        except ImportError:  # an optional package
            continue
    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        given = json.loads(line)
        if "end" in given:
            _say(os.waitstatus_to_exitcode(os.waitpid(given["end"], 0)[1]))
        elif child := os.fork():
            _say(child)
        else:
            return given
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
