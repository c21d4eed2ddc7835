"""A process that does one training step, and prints when each of its stages ended, as a line `@{...}`."""

import json
import sys
import time
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    from benchmarks.ours import Ours
    from benchmarks.workloads import Case

    imported = time.time()
    case = json.loads(argv[0])
    ours = Ours(Case(**case), [])
    built = time.time()
    ours.run(1)
    done = time.time()
    print("@" + json.dumps({"imported": imported, "compiled": built, "done": done}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
