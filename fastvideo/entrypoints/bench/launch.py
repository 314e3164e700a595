"""Time one command: `python launch.py ANSWER LOG COMMAND...`. Imports next to nothing, as it is run by its path: what a
process that starts another holds counts in the peak that the system reports of that other one.
"""

import json
import os
import subprocess
import sys
import time

if __name__ == "__main__":
    with open(sys.argv[2], "wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(sys.argv[3:], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"seconds": seconds, "peak": usage.ru_maxrss * unit, "code": os.waitstatus_to_exitcode(status)}
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(found, file)
