"""Two runs of `qwq bench` side by side: ratios with confidence intervals, if they are alike.

Contract: only the same test on the same file with the same placement is compared, and `check`
refuses the rest; settings may differ, for that is what people compare. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwqcli import figures
from qwqcli.bench.report import FLASH, Report, Row
from qwqcli.errors import UsageError

_FLASH = {code: name for name, code in FLASH.items()}


@dataclass(frozen=True, slots=True)
class Compared:
    """A test of both runs; `ratio` is the speed of the second over that of the first."""

    first: Row
    second: Row
    ratio: figures.Ratio


def compare(first: Report, second: Report, *, force: bool = False) -> tuple[Compared, ...]:
    """The tests that both have. Raises UsageError where the runs are not alike, unless `force`."""
    if not force:
        check(first, second)
    known = {row.test: row for row in first.tests}
    pairs = [(known[row.test], row) for row in second.tests if row.test in known]
    if not pairs:
        raise UsageError(
            f"The runs {first.id} and {second.id} have no test in common.",
            "Give both the same -p, -n and -d",
        )
    return tuple(Compared(a, b, figures.ratio(b.samples_ts, a.samples_ts)) for a, b in pairs)


def check(first: Report, second: Report) -> None:
    """Refuse to compare what was not measured alike."""
    unlike = [
        f"{what} ({a} and {b})"
        for what, a, b in (
            ("the file", first.setup.sha256[:12], second.setup.sha256[:12]),
            ("the placement", first.setup.placement, second.setup.placement),
            ("the tests", _tests(first), _tests(second)),
        )
        if a != b
    ]
    if unlike:
        raise UsageError(
            f"The runs differ in {', '.join(unlike)}.", "--force compares what both have"
        )


def settings(row: Row) -> dict[str, str]:
    """What may differ between two runs that are compared, in words."""
    return {
        "threads": str(row.n_threads),
        "flash attention": _FLASH[row.flash_attn],
        "repack": "on" if row.repack else "off",
        "micro-batch": str(row.n_ubatch),
        "KV": row.type_k if row.type_k == row.type_v else f"{row.type_k}/{row.type_v}",
    }


def _tests(report: Report) -> str:
    return " ".join(row.test.name.replace(" ", "") for row in report.tests)
