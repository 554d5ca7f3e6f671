"""Jobs on digits whose dataset does what machines do: dies, waits, fails. Markers in a folder make it do so once."""

import os
import signal
import time

from torch import nn

import gradindex
from tests.jobs import ROWS, digits, trained


class Trouble:
    """Digits; at row `dies` the process is killed once, from row `waits` on reading waits for a file called ``go``."""

    def __init__(self, folder, dies=ROWS, waits=ROWS, fails=ROWS, owner=0):
        self.folder, self.dies, self.waits, self.fails = folder, dies, waits, fails
        self.owner = owner  # the process that nothing happens to
        self.x, self.y = digits()

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        if os.getpid() == self.owner:
            return self.x[row].copy(), self.y[row]
        if row >= self.waits:
            (self.folder / f"waits-{os.getpid()}").touch()
            for _ in range(3000):
                if (self.folder / "go").exists():
                    break
                time.sleep(0.02)
        if row == self.dies and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if row == self.fails:
            raise OSError("disk on fire")
        return self.x[row].copy(), self.y[row]


def job(dataset):
    names = [f"digit {row}" for row in range(ROWS)]
    return gradindex.Job(trained(), nn.CrossEntropyLoss(), dataset, columns={"name": names})
