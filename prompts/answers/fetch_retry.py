"""Tests of a retry helper: how often it sends, how long it waits, and what it gives up on."""

waits = []


def scripted(*outcomes):
    """A `send` that gives each outcome in turn, raising those that are errors."""
    left = list(outcomes)

    def send(timeout):
        assert timeout == 2.5, "the timeout must be passed on"
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    send.left = left
    return send


def fetch(send, attempts=4):
    waits.clear()
    return fetch_retry(send, attempts=attempts, timeout=2.5, delay=0.5, sleep=waits.append)


assert fetch(scripted((200, "ok"))) == (200, "ok") and waits == []
assert fetch(scripted((503, ""), TimeoutError(), (200, "ok"))) == (200, "ok")
assert waits == [0.5, 1.0], "the wait doubles after each attempt"

send = scripted((404, "no"), (200, "ok"))
assert fetch(send) == (404, "no") and len(send.left) == 1, "a 404 is not tried again"

send = scripted(*[(500, "")] * 5)
assert fetch(send) == (500, "") and len(send.left) == 1, "the last response is returned"
assert waits == [0.5, 1.0, 2.0], "no wait after the last attempt"

try:
    fetch(scripted(*[TimeoutError("slow")] * 4))
except TimeoutError:
    pass
else:
    raise AssertionError("the last TimeoutError must reach the caller")

try:
    fetch(scripted(ValueError("bug")))
except ValueError:
    assert waits == []
else:
    raise AssertionError("other errors are not tried again")
