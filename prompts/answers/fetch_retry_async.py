"""Tests of the asynchronous retry helper, on a loop without a network."""

import asyncio

waits = []


async def nap(seconds):
    waits.append(seconds)


def scripted(*outcomes):
    left = list(outcomes)

    async def send():
        outcome = left.pop(0)
        if outcome == "hang":
            await asyncio.sleep(1)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    send.left = left
    return send


def fetch(send, attempts=3):
    waits.clear()
    return asyncio.run(
        fetch_retry_async(send, attempts=attempts, timeout=0.05, delay=0.5, sleep=nap)
    )


assert fetch(scripted((200, "ok"))) == (200, "ok") and waits == []
assert fetch(scripted((502, ""), "hang", (200, "ok"))) == (200, "ok")
assert waits == [0.5, 1.0], "the wait doubles after each attempt"
send = scripted((403, "no"), (200, "ok"))
assert fetch(send) == (403, "no") and len(send.left) == 1, "a 403 is not tried again"
assert fetch(scripted((500, "a"), (500, "b"), (500, "c"))) == (500, "c")
try:
    fetch(scripted("hang", "hang", "hang"))
except asyncio.TimeoutError:
    pass
else:
    raise AssertionError("the last timeout must reach the caller")
