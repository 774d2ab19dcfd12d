"""A short-lived process that judges one answer, so that a checker that hangs can be ended.

Contract: one JSON object on stdin (`kind`, `values`, `answer`), one verdict on stdout.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from qwqcli.checkers import KINDS


def main() -> None:
    """Read, judge, print."""
    request = json.load(sys.stdin)
    checker = KINDS[request["kind"]](**request["values"])
    print(json.dumps(dataclasses.asdict(checker.judge(request["answer"]))))


if __name__ == "__main__":
    main()
