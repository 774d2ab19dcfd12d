"""What a run of `qwq bench` found, as values, and as JSON, CSV and one line of Markdown.

Contract: `to_json` and `from_json` are inverse. A row of `tests` has llama-bench's field names
where it has the field; what it lacks comes after. `SCHEMA` grows when a field changes its meaning
or goes; a newer report is refused, an older one read.
Units: tokens per second (`_ts`), nanoseconds (`_ns`), seconds (`_s`), bytes, watts, joules. What
the machine does not tell is null.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from qwqcli import figures
from qwqcli.bench import Test
from qwqcli.errors import UsageError

SCHEMA = 1
# enum llama_flash_attn_type; 2 is ours: on for prompts, off for generation
FLASH = {"auto": -1, "off": 0, "on": 1, "prompts": 2}


@dataclass(frozen=True, slots=True)
class Row:
    """One test. `samples_ns` are its repetitions; all speeds follow from them."""

    n_prompt: int
    n_gen: int
    n_depth: int
    samples_ns: tuple[int, ...]
    n_batch: int
    n_ubatch: int
    n_threads: int
    type_k: str
    type_v: str
    n_gpu_layers: int
    flash_attn: int  # see FLASH
    repack: bool
    test_time: str  # when it was done, ISO 8601
    ceiling_ts: float | None = None

    @property
    def test(self) -> Test:
        return Test(self.n_prompt, self.n_gen, self.n_depth)

    @property
    def samples_ts(self) -> tuple[float, ...]:
        tokens = self.n_prompt + self.n_gen
        return tuple(tokens / (ns / 1e9) for ns in self.samples_ns)

    @property
    def speed(self) -> figures.Summary:
        """Tokens per second."""
        return figures.summary(self.samples_ts)

    def plain(self) -> dict[str, Any]:
        """The fields of this row, with those that follow from the samples."""
        time, speed = figures.summary(self.samples_ns), self.speed
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "avg_ns": round(time.mean),
            "stddev_ns": round(time.sd),
            "avg_ts": round(speed.mean, 4),
            "stddev_ts": round(speed.sd, 4),
            "samples_ts": [round(ts, 4) for ts in self.samples_ts],
            "median_ts": round(speed.median, 4),
            "outliers": list(speed.outliers),
            "ceiling_share": round(speed.mean / self.ceiling_ts, 4) if self.ceiling_ts else None,
        }


@dataclass(frozen=True, slots=True)
class Felt:
    """What the person feels, through the path that `qwq chat` takes, sampling on."""

    load_s: float
    prompt_tokens: int
    cold_first_token_s: float | None  # from sending to the first piece, nothing in the KV cache
    reused_tokens: int
    reused_first_token_s: float | None  # of a second question in the same conversation
    thinking_ts: float | None  # tokens per second from the first piece to the last
    generated_tokens: int
    peak_ram_bytes: int
    peak_gpu_bytes: int | None
    watts: float | None
    tokens_per_joule: float | None


@dataclass(frozen=True, slots=True)
class Setup:
    """What was measured, on what."""

    model_name: str
    quantization: str
    model_filename: str
    model_size: int  # bytes of weights
    model_n_params: int
    sha256: str  # of the file; of a model in parts, of their sums in order
    placement: str  # one line: where the layers really went
    engine: str  # llama-cpp-python's version
    engine_build: str  # fingerprint of library, interpreter and CPU
    backends: str
    cpu_info: str
    gpu_info: str
    cores: int
    ram_bytes: int
    qwq_version: str
    tuned: str = ""  # what `qwq tune` had set, empty for llama.cpp's and the plan's own
    bandwidth: float | None = None  # bytes per second of the RAM, measured
    bytes_per_token: int = 0  # weights read for each
    predicted_prompt_ts: float | None = None
    predicted_gen_ts: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A run. `complete` is False where it was stopped; what was measured by then is here."""

    id: str
    time: str  # ISO 8601, UTC
    setup: Setup
    tests: tuple[Row, ...] = ()
    felt: Felt | None = None
    noise: tuple[str, ...] = ()
    complete: bool = True
    schema: int = field(default=SCHEMA)


def to_json(report: Report) -> str:
    """One line."""
    setup = asdict(report.setup)
    rows = [row.plain() for row in report.tests]
    plain = {
        "schema": report.schema,
        "id": report.id,
        "time": report.time,
        "complete": report.complete,
        **setup,
        "tests": rows,
        "felt": asdict(report.felt) if report.felt else None,
        "noise": list(report.noise),
    }
    return json.dumps(plain, ensure_ascii=False)


def from_json(text: str, name: str) -> Report:
    """The report in `text`. Raises UsageError if there is none, or one of a newer version."""
    try:
        plain = json.loads(text)
        if int(plain["schema"]) > SCHEMA:
            raise UsageError(
                f"{name} was written by a newer version of qwq (schema {plain['schema']}; this one"
                f" knows {SCHEMA}).",
                "pip install --upgrade qwq",
            )
        return _report(plain)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{name} is torn, or no report of qwq bench.", f"Remove {name}") from error


def _report(plain: dict[str, Any]) -> Report:
    felt = plain["felt"]
    return Report(
        id=str(plain["id"]),
        time=str(plain["time"]),
        setup=_value(Setup, plain),
        tests=tuple(_value(Row, row) for row in plain["tests"]),
        felt=_value(Felt, felt) if felt else None,
        noise=tuple(map(str, plain["noise"])),
        complete=bool(plain["complete"]),
    )


def _value(kind: type[Any], plain: dict[str, Any]) -> Any:
    """A flat dataclass from the keys that are its own; what it has no default for must be there."""
    known = {f.name: plain[f.name] for f in fields(kind) if f.name in plain}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


CSV_SETUP = ("engine", "cpu_info", "gpu_info", "backends", "model_filename", "model_size",
             "model_n_params", "quantization", "sha256", "placement")  # fmt: skip


def to_csv(reports: Sequence[Report]) -> str:
    """A line a test with a header; lists are left out, they are in the JSON."""
    out = io.StringIO()
    lists = ("samples_ns", "samples_ts", "outliers")
    rows = [
        {
            "id": report.id,
            **{name: getattr(report.setup, name) for name in CSV_SETUP},
            **{key: value for key, value in row.plain().items() if key not in lists},
        }
        for report in reports
        for row in report.tests
    ]
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def to_line(report: Report) -> str:
    """One line that a person pastes into a forum."""
    setup = report.setup
    speeds = [f"{row.test.name} **{plus_minus(row.speed)}**" for row in report.tests]
    device = setup.gpu_info or setup.cpu_info
    count = report.tests[0].n_threads if report.tests else 0
    threads = f", {count} thread{'s' if count > 1 else ''}" if count else ""
    felt = report.felt
    if felt and felt.thinking_ts:
        speeds.append(f"in a chat **{felt.thinking_ts:.1f}**")
    first = felt.cold_first_token_s if felt else None
    waited = f", first token after {first:.2f} s" if first is not None else ""
    name = f"{setup.model_name} {setup.quantization}".strip()
    where = f"{setup.placement}{threads}, llama-cpp-python {setup.engine}"
    return f"{name} on {device} ({where}): {', '.join(speeds)} tokens/s{waited}"


def plus_minus(speed: figures.Summary) -> str:
    """`37.70 ± 0.15`, with digits that a person can use."""
    digits = 2 if speed.mean < 1000 else 0
    return f"{speed.mean:.{digits}f} ± {speed.sd:.{digits}f}"
