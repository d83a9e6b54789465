"""One kernel: `python -m gpu_visit.probe TARGET`. Whether the device still answers; who asks has a deadline."""

import importlib
import json
import sys

from gpu_visit.worker import sentence


def main(target):
    try:
        importlib.import_module(target).device().probe()
    except Exception as error:
        print(json.dumps({"unable": sentence(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
