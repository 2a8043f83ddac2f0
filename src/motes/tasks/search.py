"""The process that searches by regular expressions: reads one request per line, writes one reply per line, in JSON.

    ["A: (\\\\d+)", "A: 4 … A: 5", false]    {"value": "5"}    null if nothing matches

`motes.tasks.patterns` runs it as a file. It imports nothing of motes, so that it starts fast. A search that takes more
than the processor time in its argument ends the process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import warnings


def last_match(pattern: str, text: str, is_cut: bool) -> str | None:
    """The content of the last match that is not blank; None if there is none.

    Args:
        is_cut: whether more of the text is missing: then a match at its end may be half of one, and does not count.
    """
    answer = None
    for match in re.finditer(pattern, text):
        content = _content(match).strip()
        if content and not (is_cut and match.end() == len(text)):
            answer = content
    return answer


def _content(match: re.Match[str]) -> str:
    groups = match.groupdict()
    if "answer" in groups:
        return groups["answer"] or ""
    return next((group for group in match.groups() if group is not None), match[0])


def limit_time(seconds: float) -> None:
    """Let the signal's default action end this process after so many seconds of processor time; 0: cancel that."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main(seconds: float) -> None:
    warnings.simplefilter("ignore")
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the process that started this one may ignore it
    print(json.dumps({"value": "ready"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        limit_time(seconds)
        reply = {"value": last_match(*request)}
        limit_time(0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]))
    except BrokenPipeError:  # the other process has ended
        os._exit(1)
