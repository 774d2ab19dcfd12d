"""Tests of a ring buffer with negative indexes, against a list that is cut."""

import random


def fails(action, kind):
    try:
        action()
    except kind:
        return True
    return False


buffer = RingBuffer(3)
assert len(buffer) == 0
assert fails(lambda: buffer[0], IndexError) and fails(lambda: buffer[-1], IndexError)
for item in "abcde":
    buffer.append(item)
assert len(buffer) == 3
assert [buffer[i] for i in range(3)] == ["c", "d", "e"], "index 0 is the oldest"
assert [buffer[-1], buffer[-2], buffer[-3]] == ["e", "d", "c"], "-1 is the newest"
assert fails(lambda: buffer[3], IndexError) and fails(lambda: buffer[-4], IndexError)
assert list(buffer) == ["c", "d", "e"]
assert fails(lambda: RingBuffer(0), ValueError)

for capacity in (1, 2, 7):
    buffer, model = RingBuffer(capacity), []
    for item in random.Random(capacity).sample(range(1000), 60):
        buffer.append(item)
        model = [*model, item][-capacity:]
        assert list(buffer) == model and len(buffer) == len(model)
        for at in range(-len(model), len(model)):
            assert buffer[at] == model[at]

big = RingBuffer(200_000)
for item in range(400_000):  # takes minutes unless appending is O(1)
    big.append(item)
assert big[0] == 200_000 and big[-1] == 399_999
