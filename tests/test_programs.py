"""What `tests.programs` starts behaves as what ``python`` starts."""

import os
import signal
import subprocess

import pytest

from tests import programs


def test_a_program_has_a_folder_variables_output_and_an_end_of_its_own(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, sys\nprint(__name__, sys.argv[1:], os.getcwd(), sys.path[0], os.environ['WORD'])\n"
        "print([name for name in sys.modules if name.startswith('gradindex')], file=sys.stderr)\nsys.exit(7)\n"
    )
    done = programs.run([tmp_path / "script.py", 3], cwd="/", env={**os.environ, "WORD": "é"})
    assert done.stdout == f"__main__ ['3'] / {tmp_path} é\n"
    assert (done.stderr, done.returncode) == ("[]\n", 7)
    done = programs.run(["-W", "error::UserWarning", "-c", "import warnings; warnings.warn('no')"])
    assert done.returncode == 1 and done.stderr.endswith("UserWarning: no\n")
    assert programs.run(["-c", "import atexit; atexit.register(print, 'last'); raise SystemExit"]).stdout == "last\n"
    done = programs.run(["-m", "script", "a"], cwd=tmp_path, env={**os.environ, "WORD": "b"})
    assert done.stdout == f"__main__ ['a'] {tmp_path} {tmp_path} b\n"


def test_several_are_at_work_and_may_be_killed():
    one, other = (programs.start(["-c", f"import time; print({i}, flush=True); time.sleep(99)"]) for i in (1, 2))
    with pytest.raises(subprocess.TimeoutExpired) as told:
        other.finish(2)
    assert told.value.output == "2\n"
    os.kill(one.pid, signal.SIGKILL)
    done = one.finish()
    assert (done.stdout, done.returncode) == ("1\n", -signal.SIGKILL)
