"""The protocol of `benches/measure/side.rs` for peers in Python: import once, then a forked process for every case.

A script calls `serve(name, set_up)`; `set_up(case)` returns a function that runs one step. It must not compute anything
before: a process that has started its threads cannot be forked safely.
"""

import json
import os
import sys
import time


def memory_mib(field):
    """A line of /proc/self/status in MiB; None where there is no such file."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))
    except (OSError, StopIteration):
        return None


def answer(out, value):
    out.write(json.dumps(value) + "\n")
    out.flush()


def child(case, requests, answers, set_up):
    """Serves one case until it is told to end."""
    try:
        step = set_up(case)
        answer(answers, {})
        for line in requests:
            request = json.loads(line)
            if "end" in request:
                answer(answers, {"peak_memory_mib": memory_mib("VmHWM")})
                return
            start, cpu = time.perf_counter(), time.process_time()
            for _ in range(request["steps"]):
                step()
            answer(answers, {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu})
    except Exception as error:
        answer(answers, {"error": f"{type(error).__name__}: {error}"})


def serve(name, set_up):
    answer(sys.stdout, {"name": name, "memory_mib": memory_mib("VmRSS")})
    cases = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "case" in request:
            to_child, to_parent = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(to_child[1])
                child(request["case"], os.fdopen(to_child[0]), os.fdopen(to_parent[1], "w"), set_up)
                os._exit(0)
            os.close(to_child[0])
            os.close(to_parent[1])
            cases[request["id"]] = (pid, os.fdopen(to_child[1], "w"), os.fdopen(to_parent[0]))
        pid, requests, answers = cases[request["id"]]
        if "case" not in request:
            requests.write(line)
            requests.flush()
        sys.stdout.write(answers.readline() or json.dumps({"error": "the process of this case died"}) + "\n")
        sys.stdout.flush()
        if "end" in request:
            requests.close()
            os.waitpid(pid, 0)
            del cases[request["id"]]
