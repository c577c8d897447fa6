"""A client of the delivery model: it checks each frame that it receives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reliable_cable.connection.commands import Commands
from reliable_cable.connection.connection import Connection
from reliable_cable.connection.stream_ids import stream_alias
from tests.support.memory_socket import MemorySocket

from .delivery_model import (
    IDENTIFIERS,
    PARAMS,
    STREAMS,
    History,
    Request,
    Subscribed,
    Track,
)


class Client:
    """A client as the protocol describes it. It checks each frame that it reads.

    Args:
        world: the stored messages of each stream.
        name: its name.
    """

    def __init__(self, world: Mapping[str, History], name: str) -> None:
        self.world = world
        self.name = name
        self.commands: Commands | None = None
        self.socket: MemorySocket | None = None
        #: The session id ("" before the welcome), and the id of the session that the connection asked to restore. The
        #: client asks for that session again if the connection breaks before the welcome.
        self.sid = ""
        self.last_sid = ""
        #: The session ids by which a broadcast can exclude this client, and all session ids that this client ever had.
        self.chain: tuple[str, ...] = ()
        self.sids: set[str] = set()
        self.positions: dict[str, tuple[str, int]] = {}
        self.subscribed = {name: Subscribed() for name in IDENTIFIERS}
        #: Whether it requests the history of restored subscriptions at once.
        self.prompt = True
        #: Whether it reads each frame at once.
        self.reads = True
        self._markers = 0
        #: The commands that it is going to send.
        self.outgoing: list[dict[str, Any]] = []

    # -- reading -------------------------------------------------------------------------------------------------------

    def handle(self, frame: Mapping[str, Any], marks: Mapping[str, int]) -> None:
        """Check a frame.

        Args:
            frame: the frame.
            marks: the number of messages of each stream when the server wrote the frame.
        """
        kind = frame.get("type")
        if kind == "ping":
            return
        if kind == "welcome":
            self._welcomed(frame)
            return
        assert self.sid, "the welcome comes first"
        name = str(frame["identifier"])
        if name.startswith("marker "):
            self._left(name)
            return
        sub = self.subscribed[name]
        if kind == "confirm_subscription":
            self._confirmed(name, sub, marks)
            return
        assert sub.state in ("active", "leaving"), f"no frame before the confirmation or after the end: {frame}"
        if kind == "loss":
            sub.notice = True
        elif kind == "reject_history":
            self._rejected(sub)
        elif kind == "confirm_history":
            self._complete(name, sub)
        elif kind is not None:
            raise AssertionError(frame)
        elif "stream_id" in frame:
            self._broadcast(name, sub, frame, marks)
        elif "t" in frame["message"]:
            self._transient(sub, frame["message"])
        else:
            self._answer(sub, frame["message"], marks)

    def _welcomed(self, frame: Mapping[str, Any]) -> None:
        self.sid = frame["sid"]
        self.sids.add(self.sid)
        self.chain = (self.sid, *self.chain[:7]) if frame.get("restored") else (self.sid,)
        for name in frame.get("restored_ids", ()):
            sub = self.subscribed[name]
            if sub.state != "away":
                sub.__init__()  # type: ignore[misc]
                sub.uncertain = set(STREAMS)
            sub.state, sub.restored = "active", True
            if self.prompt:
                self.request(name, self.honest(name))
        for name, sub in self.subscribed.items():
            if sub.state == "away":
                self.subscribe(name, self.honest(name))

    def _confirmed(self, name: str, sub: Subscribed, marks: Mapping[str, int]) -> None:
        if not sub.confirmable:
            assert sub.repeats >= 2, "one confirmation for each subscribe, and for every second repeat"
            sub.repeats -= 2
            return
        if sub.refresh is not None:
            request, ids = sub.refresh[0], sub.stream_ids
            sub.__init__()  # type: ignore[misc]
            sub.stream_ids = ids
            self._pending(sub, request)
        sub.confirmable, sub.confirmed = False, True
        sub.tracks = {stream: Track(marks[stream]) for stream in PARAMS[name]}
        for request in sub.requests:
            request.tracks = dict(sub.tracks)
        if sub.state == "pending":
            sub.state = "active"

    def _left(self, marker: str) -> None:
        name = marker.split(" ", 2)[2]
        sub = self.subscribed[name]
        if not sub.markers or sub.markers[0] != marker:
            return
        again, ids = sub.again, sub.stream_ids
        sub.__init__()  # type: ignore[misc]
        sub.stream_ids = ids
        if again is not None:
            self._pending(sub, again[0])

    def _rejected(self, sub: Subscribed) -> None:
        streams = {*sub.tracks, *sub.starting, *sub.uncertain}
        damaged = any(self.world[stream].damaged for stream in streams)
        for track in sub.tracks.values():
            track.told = True
        if sub.notice:
            sub.notice = False
            assert damaged, "told of a loss, but nothing was lost"
            return
        assert sub.requests, "an answer without a request"
        request = sub.requests.popleft()
        # Requests that were pending together may have been merged, so any of them may be the reason.
        sub.refusable = sub.refusable or not request.honest or any(not each.honest for each in sub.requests)
        damaged = damaged or any(self.world[stream].damaged for stream in request.stopped)
        assert damaged or sub.refusable, "rejected, but nothing was lost"

    def _complete(self, name: str, sub: Subscribed) -> None:
        assert sub.requests, "an answer without a request"
        request = sub.requests.popleft()
        sub.refusable = False
        for stream, track in sub.tracks.items():
            if self._unsure(sub, stream) or request.tracks.get(stream) is not track:
                continue
            assert stream not in request.outdated, "entries of an epoch that has ended cannot be complete"
            position = request.position(stream, name, track.stream_id)
            if position is None:
                # The store no longer knows the times of the messages in an ended epoch, so it may omit them.
                if request.since is not None and stream not in request.begun:
                    track.told = track.told or self.world[stream].damaged
                continue
            if stream not in request.begun:
                start = self.world[stream].after(position)
                if start is not None:
                    track.due = max(start, track.due or 0)
                    track.epoch = position[0]
                track.told = start is None
                if start is None and position[1] == 0:
                    track.told = False

    def _broadcast(self, name: str, sub: Subscribed, frame: Mapping[str, Any], marks: Mapping[str, int]) -> None:
        stream_id, epoch, offset = frame["stream_id"], frame["epoch"], frame["offset"]
        stream = stream_id.partition("#")[0]
        assert stream_id in (stream, stream_alias(stream, name))
        history = self.world[stream]
        index = history.index[epoch, offset]
        message = history.messages[index]
        assert frame["message"]["n"] == index
        assert message.exclude not in self.chain, "it is excluded"
        track = sub.tracks.get(stream)
        if track is None:
            assert self._unsure(sub, stream), f"the subscription does not have the stream: {frame}"
            track = sub.tracks[stream] = Track(marks[stream])
        fault = self._fault(sub, track, stream, index)
        if fault is not None:
            due = index if track.told else track.floor if track.due is None else track.due
            request = self._begins(name, sub.requests, stream, index, stream_id, due)
            if request is not None:
                request.begun.add(stream)
            elif track.due is None:
                request = self._begins(name, sub.sent, stream, index, stream_id, index)
            assert request is not None, f"{fault}: {stream} {index} {message}, {track}"
        track.due, track.epoch, track.told, track.stream_id = index + 1, epoch, False, stream_id
        self.positions[stream_id] = (epoch, offset)
        sub.stream_ids.add(stream_id)

    def _unsure(self, sub: Subscribed, stream: str) -> bool:
        return bool(sub.starting[stream] or sub.stopping[stream] or stream in sub.uncertain)

    def _begins(
        self, name: str, requests: Iterable[Request], stream: str, index: int, stream_id: str, due: int
    ) -> Request | None:
        """Return the request to which this message is the first response; None if there is none.

        The response to a request with `since` must not skip messages from the index `due` on.
        """
        history = self.world[stream]
        message = history.messages[index]
        for request in requests:
            if stream in request.begun:
                continue
            position = request.position(stream, name, stream_id)
            if position is not None:
                start = history.after(position)
                if start is not None and position[0] == message.epoch and self.skippable(stream, start, index):
                    return request
            elif request.since is not None and message.vanished:
                # The store lost the message before it looked up `since`. A page that was read earlier has the message.
                return request
            elif request.since is not None and message.time >= request.since:
                first = index
                while first and history.messages[first - 1].epoch == message.epoch:
                    if history.messages[first - 1].time < request.since:
                        break
                    first -= 1
                if self.skippable(stream, min(first, due), index):
                    return request
            elif request.since is not None and request.initial and index <= due:
                # The server also sends messages older than `since`, if it had not learned of them before the subscribe.
                return request
        return None

    def _fault(self, sub: Subscribed, track: Track, stream: str, index: int) -> str | None:
        """Return what is wrong with a message that is not a response to a request; None if nothing is."""
        message = self.world[stream].messages[index]
        if track.due is not None and index < track.due:
            return "twice, or out of order"
        if track.told:
            return None
        if track.due is None:
            # A request that came with the subscribe is answered before live messages.
            # If an epoch ends during the request, the answer may begin with messages that are older than its `since`.
            exact = not self.world[stream].damaged
            named = (
                stream in each.streams or (exact and each.since is not None) for each in sub.requests if each.initial
            )
            if any(named):
                return "not from the requested position"
            seen = index < track.floor or self.skippable(stream, track.floor, index, fresh=True)
            return None if seen else "skipped"
        if track.epoch not in (None, message.epoch):
            return "an epoch ended in silence"
        return None if self.skippable(stream, track.due, index) else "skipped"

    def skippable(self, stream: str, first: int, end: int, *, fresh: bool = False) -> bool:
        """Return whether this client needs none of the messages from `first` up to, but not including, `end`.

        Args:
            stream: the stream.
            first: the index of the first message.
            end: the index after the last message.
            fresh: whether the client has received no message so far. For such a client, an epoch may have ended
                unnoticed, because the stream did not exist when the client subscribed, and may not exist now.
        """
        history = self.world[stream]
        epoch = history.epoch()
        return first <= end and all(
            message.vanished or message.exclude in self.sids or (fresh and message.epoch != epoch)
            for message in history.messages[first:end]
        )

    def _transient(self, sub: Subscribed, message: Mapping[str, Any]) -> None:
        assert message["exclude"] not in self.chain, "it is excluded"
        assert message["t"] > sub.last_transient.get(message["stream"], 0), "twice, or out of order"
        sub.last_transient[message["stream"]] = message["t"]

    def _answer(self, sub: Subscribed, message: Mapping[str, Any], marks: Mapping[str, int]) -> None:
        if (stream := message.get("started")) is not None:
            sub.starting[stream] -= 1
            track = sub.tracks.setdefault(stream, Track(marks[stream]))
            if stream in sub.uncertain and track.due is None:
                # An action whose answer was lost may have stopped the stream. If so, a restore has started it afresh.
                track.floor = marks[stream]
        else:
            stream = message["stopped"]
            sub.stopping[stream] -= 1
            sub.tracks.pop(stream, None)
            for request in sub.requests:
                request.stopped.add(stream)
        if not sub.starting[stream] and not sub.stopping[stream]:
            sub.uncertain.discard(stream)

    # -- sending -------------------------------------------------------------------------------------------------------

    def send(self, command: str, name: str, **body: Any) -> None:
        """Queue a command, which `DeliveryWorld` sends later."""
        self.outgoing.append({"command": command, "identifier": name, **body})

    def honest(self, name: str) -> Request | None:
        """Return a request with the positions of the last messages that an identifier has received; None if none."""
        sub = self.subscribed[name]
        streams = {each: self.positions[each] for each in sorted(sub.stream_ids)}
        return Request(streams, None) if streams else None

    def subscribe(self, name: str, request: Request | None) -> None:
        """Subscribe, with a history request or without one. This also replaces a restored subscription."""
        sub = self.subscribed[name]
        if sub.state == "leaving":
            sub.again = (request,)
        elif sub.state == "active":
            sub.state, sub.confirmable, sub.refresh, sub.restored = "leaving", True, (request,), False
        else:
            ids = sub.stream_ids
            sub.__init__()  # type: ignore[misc]
            sub.stream_ids = ids
            self._pending(sub, request)
        self.send("subscribe", name, **({} if request is None else {"history": request.body()}))

    def repeat(self, name: str) -> None:
        """Send another subscribe, although the server has the subscription or is about to have it."""
        self.subscribed[name].repeats += 1
        self.send("subscribe", name)

    @staticmethod
    def _pending(sub: Subscribed, request: Request | None) -> None:
        sub.state, sub.confirmable = "pending", True
        if request is not None:
            request.initial = True
            sub.requests.append(request)
            sub.sent.append(request)

    def request(self, name: str, request: Request | None) -> None:
        """Request history. None stands for a request that names no position and no time."""
        sub = self.subscribed[name]
        request = request or Request({}, None)
        request.restored, sub.restored = sub.restored, False
        request.tracks = dict(sub.tracks)
        sub.requests.append(request)
        sub.sent.append(request)
        self.send("history", name, history=request.body())

    def unsubscribe(self, name: str) -> None:
        """Unsubscribe, and send another command, whose answer shows that the server has handled the unsubscribe."""
        sub = self.subscribed[name]
        sub.state, sub.restored = "leaving", False
        self._markers += 1
        sub.markers.append(f"marker {self._markers} {name}")
        self.send("unsubscribe", name)
        self.send("presence", sub.markers[-1])

    def dropped(self) -> None:
        """Forget the state that a client loses when its connection breaks."""
        self.commands = self.socket = None
        self.outgoing.clear()
        for sub in self.subscribed.values():
            if sub.state not in ("active", "away"):
                ids = sub.stream_ids
                sub.__init__()  # type: ignore[misc]
                sub.stream_ids = ids
                continue
            sub.state = "away"
            sub.uncertain |= {stream for stream in STREAMS if sub.starting[stream] or sub.stopping[stream]}
            sub.starting.clear()
            sub.stopping.clear()
            sub.requests.clear()
            sub.restored = sub.notice = sub.confirmed = False

    @property
    def connection(self) -> Connection:
        """The server's object for the current connection."""
        assert self.commands is not None
        return self.commands.connection
