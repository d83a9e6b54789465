"""A process that runs experiments on the device: `python -m gpu_visit.worker TARGET`.

Takes lines [experiment, item] and answers each with lines {"row": ...} and a last one, {"done": error or null, "lost":
whether the error has ended the CUDA context, and with it this process}. The first line of all is {"ready": what the
device is}, or {"unable": why it cannot be used}. TARGET: the module that has `device()`.
"""

import importlib
import json
import os
import re
import sys


def main(target):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is for the log

    def say(**line):
        print(json.dumps(line), file=answers, flush=True)

    try:
        device = importlib.import_module(target).device()
        device.probe()
        say(ready=device.describe())
    except Exception as error:
        say(unable=sentence(error))
        return 1
    for line in sys.stdin:
        experiment, item = json.loads(line)
        try:
            for row in importlib.import_module(f"gpu_visit.experiments.{experiment}").measure(device, item):
                say(row=row)
            device.synchronize()
        except Exception as error:
            failure, lost = sentence(error), is_lost(device)
            say(done=failure, lost=lost)
            if lost:
                os._exit(70)
        else:
            say(done=None, lost=False)
    return 0


PLACE = re.compile(r"^\w+, \S+:\d+, ")  # in the sources, before what an operator says


def sentence(error):
    text = PLACE.sub("", str(error).strip()).split("\nCUDA kernel errors")[0]
    return f"{type(error).__name__}: {text}"[:400].replace("\n", " ")


def is_lost(device):
    try:
        device.probe()
    except Exception:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
