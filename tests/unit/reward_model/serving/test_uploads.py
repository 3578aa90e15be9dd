"""Bodies that are arriving: which one goes where there are too many bytes or too many bodies."""

from __future__ import annotations

from typing import Any

import pytest

from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.uploads import GRACE, BodyMemory, Upload, Uploads

NO_END: Any = None
"""Timeout of a body, which `_no_clock` leaves alone."""


class Bodies:
    """Bodies of named clients in a memory of a hundred bytes, the one named first having stood still longest."""

    def __init__(self, *clients: str, size: int = 100, max_uploads: int = 9) -> None:
        self.memory = BodyMemory(size)
        self.uploads = Uploads(ServerConfig(max_uploads=max_uploads), self.memory)
        self._contexts = []
        self.bodies = [self.arrive(client, moved) for moved, client in enumerate(clients)]

    def arrive(self, client: str, moved: float = 1000.0) -> Upload:
        """Let a body begin."""
        context = self.uploads.arriving(client, NO_END)
        self._contexts.append(context)
        body = context.__enter__()
        body.moved = moved
        return body

    def sent(self, place: int, num_bytes: int, moved: float | None = None) -> bool:
        """Let bytes come for a body."""
        before = self.bodies[place].moved
        fits = self.uploads.add(self.bodies[place], num_bytes)
        self.bodies[place].moved = before if moved is None else moved
        return fits

    @property
    def dropped(self) -> list[bool]:
        """Whether each body was ended."""
        return [body.dropped for body in self.bodies]


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends of timeouts are noted, not scheduled."""
    monkeypatch.setattr(Upload, "drop", lambda self: setattr(self, "dropped", True))


def test_bytes_that_fit_drop_nobody() -> None:
    one = Bodies("a", "b")
    assert one.sent(0, 60) and one.sent(1, 40)
    assert one.dropped == [False, False] and one.memory.held == 100


def test_bodies_that_stood_still_longest_go_until_there_is_room() -> None:
    one = Bodies("a", "b", "c")
    assert one.sent(0, 30) and one.sent(1, 40) and one.sent(2, 30)
    assert one.sent(2, 50)  # 150: without the first 120, without the second 80
    assert one.dropped == [True, True, False]
    assert one.memory.held == 80 and [body.size for body in one.bodies] == [0, 0, 80]


def test_the_client_with_most_bodies_loses_one() -> None:
    one = Bodies("a", "b", "b")
    assert one.sent(0, 40) and one.sent(1, 30) and one.sent(2, 30) and one.sent(0, 20)
    assert one.dropped == [False, True, False] and one.memory.held == 90


def test_a_body_that_is_itself_the_one_to_go_has_no_room() -> None:
    one = Bodies("a", "b")
    assert one.sent(1, 60)
    assert not one.sent(0, 50) or one.dropped == [False, True]
    alone = Bodies("a")
    assert alone.sent(0, 90) and not alone.sent(0, 20) and alone.memory.held == 110


def test_complete_requests_are_not_made_room_for_by_dropping_others() -> None:
    one = Bodies("a", "b")
    one.memory.held = 70  # of requests that are being answered
    assert one.sent(0, 20)
    assert not one.sent(1, 40)
    assert one.dropped == [False, False] and one.memory.held == 130


def test_one_body_too_many_ends_the_one_that_stood_still_longest() -> None:
    one = Bodies("a", "b", max_uploads=2)
    one.bodies.append(one.arrive("c"))
    assert one.dropped == [True, False, False]
    one.bodies.append(one.arrive("d"))
    assert one.dropped == [True, True, False, False]  # the one that was dropped counts no longer


def test_a_body_that_has_come_is_no_longer_counted() -> None:
    memory = BodyMemory(100)
    uploads = Uploads(ServerConfig(max_uploads=1), memory)
    for _ in range(3):
        with uploads.arriving("a", NO_END) as body:
            assert uploads.add(body, 10)
        assert not body.dropped
    assert memory.held == 30  # until they are answered


def test_the_time_left_follows_the_bytes_that_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads(ServerConfig(min_body_kb=10), BodyMemory(10**9))
    clock = [100.0]
    monkeypatch.setattr("reward_model.serving.server.uploads.time.monotonic", lambda: clock[0])
    with uploads.arriving("a", NO_END) as body:
        clock[0] = 102.0
        assert uploads.seconds_left(body) == pytest.approx(GRACE - 2)
        uploads.add(body, 80_000)  # 8 s at 10 kB a second
        assert uploads.seconds_left(body) == pytest.approx(6.0) and body.moved == 102.0
