from __future__ import annotations

import signal
import subprocess
import sys

PRESS = """
import signal, sys
from ldm_lightning.callbacks.interruption import Interruption
interruption = Interruption()
interruption.on_train_start(None, None)
for _ in range({times}):
    signal.raise_signal(signal.SIGINT)
print("received", interruption._received)
"""


def press(times: int) -> subprocess.CompletedProcess[str]:
    script = PRESS.format(times=times)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)


def test_a_second_ctrl_c_lets_the_save_happen() -> None:
    twice = press(2)
    assert (twice.returncode, twice.stdout) == (0, f"received {int(signal.SIGINT)}\n")
    assert "saving" in twice.stderr


def test_a_third_ctrl_c_kills() -> None:
    thrice = press(3)
    assert (thrice.returncode, thrice.stdout) == (-signal.SIGINT, "")
    assert "Traceback" not in thrice.stderr
