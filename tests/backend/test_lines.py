"""JSON lines over a socket."""

from __future__ import annotations

import socket

import pytest

from sthyper.backend._lines import LineSocket


@pytest.fixture
def pair():
    one, two = socket.socketpair()
    sides = LineSocket(one), LineSocket(two)
    yield sides
    for side in sides:
        side.close()


def test_messages_arrive_whole_and_in_order(pair):
    one, two = pair
    assert two.receive() == []
    for number in range(3):
        one.send({"n": number, "text": "line\nbreak ä"})
    assert two.receive() == [{"n": number, "text": "line\nbreak ä"} for number in range(3)]


def test_a_full_socket_does_not_block(pair):
    one, two = pair
    messages = [{"n": number, "text": "x" * 1000} for number in range(2000)]
    for message in messages:
        one.send(message)
    assert one.pending
    received = []
    while len(received) < len(messages):
        received += two.receive()
        one.flush()
    assert received == messages
    assert not one.pending


def test_what_was_sent_before_the_end_arrives(pair):
    one, two = pair
    one.send({"last": True})
    one.close()
    assert two.receive() == [{"last": True}]
    assert not two.open
    assert two.receive() == []
    two.send({"into": "the void"})
    assert not two.pending


def test_a_lost_reader_does_not_hide_what_it_wrote(pair):
    one, two = pair
    two.send({"event": 1})
    two.close()
    one.send({"do": 1})
    one.send({"do": 2})
    assert one.receive() == [{"event": 1}]
    assert not one.open
