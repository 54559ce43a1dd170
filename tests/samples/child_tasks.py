"""What children are told to do in test_child.py."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

from mpdiag.errors import UsageError


def double(request: dict[str, Any]) -> dict[str, Any]:
    print("noise of the user's code")
    return {"twice": 2 * request["number"], "pid": os.getpid()}


def killed(request: dict[str, Any]) -> None:
    os.kill(os.getpid(), getattr(signal, request["signal"]))


def left(request: dict[str, Any]) -> None:
    sys.stderr.write("first line\nlast words\n")
    sys.stderr.flush()
    os._exit(7)


def make_ready(request: dict[str, Any]) -> None:
    if request.get("leaves"):
        raise SystemExit(0)
    READY.append(request["number"])


READY: list[int] = []


def ready(request: dict[str, Any]) -> dict[str, Any]:
    return {"ready": READY, "pid": os.getpid()}


def slow(request: dict[str, Any]) -> None:
    time.sleep(600)


def raises(request: dict[str, Any]) -> None:
    raise ValueError("first line\nsecond line")


def raises_usage(request: dict[str, Any]) -> None:
    raise UsageError("some-slug", "what is wrong", "what to do")


def out_of_memory(request: dict[str, Any]) -> None:
    import torch

    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


def with_a_worker(request: dict[str, Any]) -> None:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(request["file"], "w") as file:
        file.write(f"{os.getpid()} {worker.pid}")
    time.sleep(600)
