"""Long documents with facts scattered in them, made from a seed, so that what is right is known.

Contract: `make` gives a document of about `tokens` tokens, a question and the points of the right
answer; the same arguments give the same document on every machine. Tokens are estimated at
CHARS_PER_TOKEN; an engine counts them exactly and skips what does not fit.
The document is the reference of an invented web service. Most of it tells of requests that succeed
or of other status codes; some sentences tell of a cause for the status 422 with a code of its own.
Neighbouring codes of other statuses are there to be confused with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

CHARS_PER_TOKEN = 4.0  # of this text with SmolLM2's tokenizer: 3.8 to 4.1; small ones need more

_FIELDS = (
    *("amount", "currency", "country", "postcode", "due_date", "email", "phone", "quantity"),
    *("discount", "tax_rate", "iban", "locale", "timezone", "weight", "colour", "category"),
    *("voucher", "priority", "reference", "birth_date", "vat_id", "language", "unit", "status"),
)
_THINGS = ("invoice", "order", "customer", "shipment", "refund", "ticket", "contract", "booking")
_CAUSES = (
    "A {thing} whose {field} lies outside the permitted range is answered with {status} {code}.",
    "If {field} of a {thing} is missing, the service replies {status} and sets the code {code}.",
    "The code {code} with status {status} means that {field} and the {thing} do not agree.",
    "Sending {field} twice in one {thing} leads to {status}, code {code}.",
)
_OTHER_STATUS = (400, 401, 403, 404, 409, 413, 415, 429, 500, 503)
_FILLER = (
    "The field {field} of a {thing} is optional and is kept as it was sent.",
    "A {thing} can be listed by {field}; pages hold {n} entries.",
    "Changing {field} of a {thing} takes effect within {n} seconds.",
    "Each {thing} keeps its last {n} versions, and {field} can be read from any of them.",
    "In tests, a {thing} with the {field} 'sample' is accepted and removed after {n} minutes.",
    "Webhooks tell of every new {thing}; {field} is part of the message.",
    "The limit is {n} requests a minute for each {thing}, whatever its {field}.",
)


@dataclass(frozen=True, slots=True)
class Recall:
    """A document, the question about it, and every point of the right answer."""

    text: str
    expected: tuple[str, ...]
    without: tuple[str, ...]  # codes that belong to other statuses


def make(tokens: int, needles: int, seed: int, language: str = "en") -> Recall:
    """A document of about `tokens` tokens in which `needles` causes of a 422 are scattered."""
    random = Random(f"recall {tokens} {needles} {seed}")
    codes = random.sample(range(1000, 9999), 2 * needles)
    right, wrong = codes[:needles], codes[needles:]
    told = [_cause(random, 422, code) for code in right]
    told += [_cause(random, random.choice(_OTHER_STATUS), code) for code in wrong]
    random.shuffle(told)
    text = "\n\n".join((_ASK[language], *_sections(random, told, tokens), _ASK[language]))
    return Recall(text, tuple(f"E{code}" for code in right), tuple(f"E{code}" for code in wrong))


LANGUAGES = ("en", "zh")
_ASK = {
    "en": (
        "Below is the reference of a web service. Find every cause of the HTTP status 422 in it and"
        " list their codes (such as E1234), and no code of another status."
    ),
    "zh": (
        "下面是一份网络服务的参考文档。请找出其中导致 HTTP 状态码 422 的所有原因，"
        "列出它们的代码（形如 E1234），不要列出其他状态码的代码。"
    ),
}


def _cause(random: Random, status: int, code: int) -> str:
    sentence = random.choice(_CAUSES)
    return sentence.format(
        thing=random.choice(_THINGS),
        field=random.choice(_FIELDS),
        status=status,
        code=f"E{code}",
    )


def _sections(random: Random, told: list[str], tokens: int) -> list[str]:
    """Paragraphs of filler with the sentences of `told` spread evenly over them."""
    room = tokens * CHARS_PER_TOKEN - sum(map(len, told)) - 2 * len(_ASK["en"])
    sentences: list[str] = []
    length = 0
    while length < room:
        sentences.append(_filler(random))
        length += len(sentences[-1]) + 1
    step = max(1, (len(sentences) + 1) // (len(told) + 1))
    for at, sentence in enumerate(told, 1):
        sentences.insert(min(at * step + at - 1 - random.randrange(step), len(sentences)), sentence)
    return [" ".join(sentences[at : at + 8]) for at in range(0, len(sentences), 8)]


def _filler(random: Random) -> str:
    sentence = random.choice(_FILLER)
    return sentence.format(
        thing=random.choice(_THINGS), field=random.choice(_FIELDS), n=random.randrange(2, 90)
    )
