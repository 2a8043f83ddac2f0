"""A grader's worker that does as it is told by the answer it is asked about. Run as a file, like the real one.

pid …        its process's number
hang …       no reply, ever
hang in F    the same, once it has written its number into the named pipe F, which it holds open as long as it lives
die          it kills itself
fail         an error
otherwise    whether prediction and gold are equal, or the answer itself
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import IO

pipes: list[IO[str]] = []
PATIENCE = 60  # seconds after which a test that waits for this process to be killed has failed


def reply(operation: str, *arguments: str) -> dict[str, object]:
    order, _, rest = arguments[-1].partition(" ")
    if order == "pid":
        return {"value": str(os.getpid())}
    if order == "hang":
        with open(rest.removeprefix("in "), "w") if rest.startswith("in ") else open(os.devnull, "w") as pipe:
            print(os.getpid(), file=pipe, flush=True)
            threading.Event().wait(PATIENCE)
            print("nobody killed it", file=pipe)
    if order == "hold":
        pipes.append(open(rest, "w"))  # noqa: SIM115  (held open until the end)
        print(os.getpid(), file=pipes[-1], flush=True)
    if order == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "fail":
        return {"error": "ValueError: as told"}
    return {"value": arguments[0] == arguments[1] if operation == "verify" else arguments[0]}


if __name__ == "__main__":
    print(json.dumps({"value": "ready"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(reply(*json.loads(line))), flush=True)
