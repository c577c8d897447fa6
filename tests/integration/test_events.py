"""Tests of `GET /events` on real servers: lost connections, killed servers, and slow, rejected and refused readers."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx
import pytest

from tests.support.client import unique
from tests.support.event_reader import EventReader, ServerEvent
from tests.support.redis import RedisServer
from tests.support.server import LOCAL, Kind, OtherProcess, Server, ServerPool

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def reading(servers: ServerPool, kind: Kind) -> Server:
    """A server whose streams are public. It sends pings often."""
    return servers.get(kind, PUBLIC_STREAMS=True, PING_INTERVAL=0.5, CORS_ORIGINS=["https://app.example.com"])


def base(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def streams(*names: str, **more: str) -> str:
    return urlencode([*(("stream", name) for name in names), *more.items()])


def identifier(stream: str) -> str:
    return json.dumps({"channel": "$pubsub", "stream_name": stream}, separators=(",", ":"), ensure_ascii=False)


async def test_events_have_the_format_of_anycable(reading: Server) -> None:
    stream = unique("chat/ü/")
    async with EventReader(base(reading), streams(stream)) as reader:
        await reader.until_type("confirm_subscription")
        await reading.call("broadcast", stream, {"text": "hi"})
        html = "<p>\r\n one\r two\n</p>"
        position = await reading.call("broadcast", stream, html)
        await reading.call("broadcast", stream, {"$event": "price", "data": "<b>7</b>"})
        await reader.until_type("price")
        await reader.until_type("ping")
    welcome, confirmation, *rest = reader.events
    assert (welcome.type, welcome.json["type"]) == ("welcome", "welcome")
    assert confirmation.json == {"type": "confirm_subscription", "identifier": identifier(stream)}
    events = [event for event in rest if event.type != "ping"]
    epoch = position["epoch"]
    assert events == [
        ServerEvent("message", '{"text":"hi"}', f"1/{epoch}/{stream}"),
        ServerEvent("message", "<p>\n one\n two\n</p>", f"2/{epoch}/{stream}"),
        ServerEvent("price", "<b>7</b>", f"3/{epoch}/{stream}"),
    ]
    assert set(reader.of_type("ping")[0].json) == {"type", "message"}
    assert reader.response_headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert reader.response_headers["X-Accel-Buffering"] == "no"
    assert "no-cache" in reader.response_headers["Cache-Control"]
    assert "Access-Control-Allow-Origin" not in reader.response_headers


async def test_raw_readers_get_messages_comments_and_ids_only(reading: Server) -> None:
    stream = unique("raw")
    async with EventReader(base(reading), streams(stream, raw="1")) as reader:
        await reader.until(lambda: reader.parser.last_id and "ping" in reader.parser.comments)
        assert reader.events == []
        await reading.call("broadcast", stream, [1])
        await reader.until_type("message")
        assert reader.messages == [[1]]


async def test_a_reader_that_got_no_message_before_a_cut_misses_none(reading: Server) -> None:
    """The id of the confirmation says where the subscription began."""
    one, other = unique("one"), unique("other")
    await reading.call("broadcast", one, 1)
    async with EventReader(base(reading), streams(one, other)) as reader:
        await reader.until_type("confirm_subscription", 2)
        cut = asyncio.create_task(reader.cut())
        await reading.call("broadcast", one, 2)
        await reading.call("broadcast", other, 3)
        await cut
        await reader.until_type("message", 2)
        await reader.until_type("confirm_history", 2)
        assert sorted(reader.messages) == [2, 3]


async def test_a_kill_loses_and_repeats_nothing(servers: ServerPool, kind: Kind) -> None:
    """One reader reads a channel with two streams, and two other streams."""
    names = [unique("large:") for _ in range(4)]
    channel = json.dumps({"channel": "StreamChannel", "streams": names[:2]})
    query = urlencode([("identifier", channel), ("stream", names[2]), ("stream", names[3])])
    with servers.make(kind, PUBLIC_STREAMS=True) as server:
        async with EventReader(base(server), query) as reader:
            await reader.until_type("confirm_subscription", 3)
            total = 0
            for round_ in range(3):
                for name in names:
                    await server.call("broadcast", name, [name, total + 1])
                server.kill()
                await asyncio.to_thread(server.start)
                for name in names:
                    await server.call("broadcast", name, [name, total + 2])
                total += 2
                await reader.until_type("message", total * len(names))
                assert reader.connects == round_ + 2
            assert len(reader.parser.last_id) < 200
        for name in names:
            assert [number for stream, number in reader.messages if stream == name] == list(range(1, total + 1))
        assert reader.of_type("reject_history") == []


async def test_a_draining_server_tells_its_readers_to_come_back(servers: ServerPool, kind: Kind) -> None:
    stream = unique("drain")
    with servers.make(kind, PUBLIC_STREAMS=True) as server:
        async with EventReader(base(server), streams(stream)) as reader:
            await reader.until_type("confirm_subscription")
            await server.terminate()
            # A reader that reconnects at once gets this frame again, until the server has stopped.
            assert reader.of_type("disconnect")[0].json == {
                "type": "disconnect",
                "reason": "server_restart",
                "reconnect": True,
            }
            await asyncio.to_thread(server.start)
            await server.call("broadcast", stream, 1)
            await reader.until_type("message")
            assert reader.messages == [1]
        assert "Traceback" not in server.log
        assert "ASGI callable" not in server.log


async def test_a_reader_over_the_limit_of_connects_is_told_to_come_back(servers: ServerPool, kind: Kind) -> None:
    server = servers.get(kind, PUBLIC_STREAMS=True, RATE_LIMITS={"connect": "1/1h"})
    async with httpx.AsyncClient(**LOCAL) as http:
        url = f"{base(server)}/events?{streams(unique('limited'))}"
        async with http.stream("GET", url) as response:
            assert response.status_code == 200
        refused = await http.get(url)
        assert refused.status_code == 200
        assert refused.text == (
            'event: disconnect\ndata: {"type":"disconnect","reason":"rate_limited","reconnect":true}\n\n'
        )


async def test_what_is_lost_is_told(reading: Server) -> None:
    stream = unique("small:")  # keeps 5 messages
    position = await reading.call("broadcast", stream, 1)
    for number in range(2, 9):
        await reading.call("broadcast", stream, number)
    for last_id in (f"1/{position['epoch']}/{stream}", f"1/other/{stream}", "not an id"):
        for raw in ("0", "1"):
            query = streams(stream, last_event_id=last_id, raw=raw)
            async with EventReader(base(reading), query) as reader:
                await reader.until_type("reject_history")
                assert reader.messages == []
                # The id after the notice is the end of the stream, so the reader is sent the notice only once.
                assert reader.parser.last_id == f"8/{position['epoch']}/{stream}"


@pytest.mark.redis
async def test_a_loss_of_all_data_before_the_first_message_is_told(servers: ServerPool, tmp_path: Path) -> None:
    """Even if a stream has no message, the id of its reader names the data set to which the stream belongs."""
    stream = unique("empty")
    options = {"appendonly": "no", "save": ""}
    with (
        RedisServer(tmp_path, options=options) as redis,
        servers.make("uvicorn", REDIS_URL=redis.url, PUBLIC_STREAMS=True) as server,
    ):
        async with EventReader(base(server), streams(stream)) as reader:
            await reader.until_type("confirm_subscription")
            await reader.cut()
            await reader.until_type("confirm_history")
            server.kill()
            redis.kill()
            redis.start()
            with OtherProcess(server) as beside:
                await beside.call("broadcast", stream, 1)
            redis.kill()
            redis.start()
            await asyncio.to_thread(server.start)
            await reader.until_type("reject_history")
            assert reader.messages == []


async def test_an_id_of_another_stream_is_ignored(reading: Server) -> None:
    secret, stream = unique("secret"), unique("open")
    position = await reading.call("broadcast", secret, "secret 1")
    await reading.call("broadcast", secret, "secret 2")
    await reading.call("broadcast", stream, 1)
    query = streams(stream, last_event_id=f"1/{position['epoch']}/{secret}")
    async with EventReader(base(reading), query) as reader:
        await reader.until_type("confirm_history")
        await reading.call("broadcast", stream, 2)
        await reader.until_type("message")
        assert reader.messages == [2]
        assert secret not in reader.parser.last_id


async def test_history_since_a_time(reading: Server) -> None:
    stream = unique("since")
    await reading.call("broadcast", stream, 1)
    async with EventReader(base(reading), streams(stream, history_since="0")) as reader:
        await reader.until_type("confirm_history")
        assert reader.messages == [1]
        # The URL asks for all history again when the reader reconnects, but the id in the header takes precedence.
        await reader.cut()
        await reader.until_type("confirm_history", 2)
        assert reader.messages == [1]


async def test_rejected_and_refused_readers(reading: Server) -> None:
    stream = unique("partly")
    missing = urlencode({"channel": "MissingChannel"})
    async with EventReader(base(reading), missing) as reader:
        await reader.until_ended()
        assert (reader.status, reader.error) == (403, {"error": "All subscriptions were rejected."})
    async with EventReader(base(reading), f"{missing}&{streams(stream)}") as reader:
        await reader.until_type("confirm_subscription")
        assert [event.json["identifier"] for event in reader.of_type("reject_subscription")] == [
            '{"channel":"MissingChannel"}'
        ]
    cookie = await reading.sign_in("outcast")
    async with EventReader(base(reading), streams(stream), {"Cookie": cookie}) as reader:
        await reader.until_ended()
        assert (reader.status, reader.error["reason"]) == (401, "unauthorized")
    async with EventReader(base(reading), streams(stream, token="expired")) as reader:
        await reader.until_ended()
        assert (reader.status, reader.error["reason"]) == (401, "token_expired")
    many = streams(*(unique("many") for _ in range(101)))
    async with EventReader(base(reading), many) as reader:
        await reader.until_ended()
        assert (reader.status, reader.error) == (400, {"error": "The request has more than 100 subscriptions."})


async def test_the_user_of_a_session_reads(reading: Server) -> None:
    stream = unique("mine")
    query = urlencode({"identifier": json.dumps({"channel": "QueryChannel", "stream": stream})})
    async with EventReader(base(reading), query) as reader:
        await reader.until_ended()
        assert reader.status == 403
    cookie = await reading.sign_in(unique("reader"))
    async with EventReader(base(reading), query, {"Cookie": cookie}) as reader:
        await reader.until_type("confirm_subscription")
        await reading.sign_out(cookie)
        # The reader reconnects, and its cookie no longer belongs to a user.
        await reader.until_ended()
        assert reader.of_type("disconnect")[0].json == {"type": "disconnect", "reason": "remote", "reconnect": True}
        assert reader.status == 403
    name = unique("banned")
    async with EventReader(base(reading), query, {"Cookie": await reading.sign_in(name)}) as reader:
        await reader.until_type("confirm_subscription")
        await reading.call("disconnect_user", name)
        await reader.until_type("disconnect")
        # A browser would wait for a year before it reconnects.
        await reader.until(lambda: reader.parser.retry == 31_536_000_000)


async def test_a_token_lets_its_user_read_until_it_expires(servers: ServerPool, kind: Kind) -> None:
    server = servers.get(kind, JWT_SECRET="a secret of tests with 32 bytes!", JWT_LEEWAY=0, PUBLIC_STREAMS=True)
    name = unique("mobile")
    await server.sign_in(name)
    params = {"identifier": json.dumps({"channel": "QueryChannel", "stream": unique("token")})}
    headers = {"X-JID": await server.call("make_token", name)}
    short = urlencode({**params, "jid": await server.call("make_token", name, 3)})
    async with (
        EventReader(base(server), urlencode(params), headers) as reader,
        EventReader(base(server), short) as expiring,
        EventReader(base(server), urlencode({**params, "jid": "wrong"})) as wrong,
    ):
        await reader.until_type("confirm_subscription")
        await wrong.until_ended()
        assert (wrong.status, wrong.error["reason"]) == (401, "unauthorized")
        await expiring.until_type("disconnect")
        end = expiring.of_type("disconnect")[0]
        assert end.json == {"type": "disconnect", "reason": "token_expired", "reconnect": False}
        await expiring.until_ended()
        assert (expiring.status, expiring.error["reason"]) == (401, "token_expired")
        assert reader.connects == 1
    assert "jid=ey" not in server.log


async def test_origins(reading: Server) -> None:
    stream = unique("origins")
    cookie = await reading.sign_in(unique("victim"))
    path = f"{base(reading)}/events?{streams(stream)}"

    async def status(**headers: str) -> tuple[int, str | None]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            httpx.AsyncClient(**LOCAL) as http,
            http.stream("GET", path, headers=named) as response,
        ):
            return response.status_code, response.headers.get("Access-Control-Allow-Origin")

    listed, other = "https://app.example.com", "https://evil.example.com"
    assert await status(Origin=listed) == (200, listed)
    # `CORS_ORIGINS` allows this origin, but the consumer does not. So its pages may not use a visitor's cookies.
    assert await status(Origin=listed, Cookie=cookie) == (403, listed)
    assert await status(Origin=other) == (403, None)
    assert await status(Origin=base(reading), Cookie=cookie) == (200, None)
    assert await status(Cookie=cookie, Sec_Fetch_Site="cross-site") == (403, None)
    assert await status(Cookie=cookie, Sec_Fetch_Site="same-origin") == (200, None)
    async with httpx.AsyncClient(**LOCAL) as http:
        asked = await http.options(path, headers={"Origin": listed, "Access-Control-Request-Method": "POST"})
        assert (asked.status_code, asked.headers["Access-Control-Allow-Methods"]) == (204, "GET, POST")
        asked = await http.options(path, headers={"Origin": other, "Access-Control-Request-Method": "POST"})
        assert "Access-Control-Allow-Methods" not in asked.headers
        refused = await http.put(path)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, POST, OPTIONS")


async def test_post_with_commands(reading: Server) -> None:
    stream = unique("post")
    lines = [
        {"command": "subscribe", "identifier": identifier(stream), "presence": {"id": "7", "info": {"name": "Ann"}}},
        {"command": "subscribe", "identifier": identifier(unique("post"))},
    ]
    body = "\n\n".join(map(json.dumps, lines))
    async with httpx.AsyncClient(**LOCAL) as http:
        async with http.stream("POST", f"{base(reading)}/events", content=body) as response:
            events: list[str] = []
            lines_of = response.aiter_lines()
            async for line in lines_of:
                events.append(line)
                if line == "event: presence":
                    break
            joined = json.loads((await anext(lines_of)).removeprefix("data: "))
            assert joined["message"] == {"type": "join", "id": "7", "info": {"name": "Ann"}}
        for wrong in ("", "no JSON", '{"command":"subscribe"}', '{"command":"ping"}'):
            refused = await http.post(f"{base(reading)}/events", content=wrong)
            assert (refused.status_code, list(refused.json())) == (400, ["error"])
        refused = await http.post(f"{base(reading)}/events", content="\n" * 70_000)
        assert refused.status_code == 413


async def test_a_reader_is_a_member_and_stays_one_while_it_reconnects(reading: Server) -> None:
    lobby = unique("lobby")

    def query(name: str) -> str:
        params = {"channel": "LobbyChannel", "news": unique("news"), "lobby": lobby, "id": name}
        return urlencode({"identifier": json.dumps(params)})

    async with EventReader(base(reading), query("bob")) as bob:
        await bob.until_type("presence")
        async with EventReader(base(reading), query("ann")) as ann:
            await bob.until_type("presence", 2)
            await ann.cut()
            await ann.until_type("confirm_subscription", 2)
            await reading.call("broadcast", lobby, "after the cut")
            await bob.until_type("message")
            # Nobody has left or joined.
            assert [event.json["message"]["id"] for event in bob.of_type("presence")] == ["bob", "ann"]
            assert set(await reading.call("who_is_there", lobby)) == {"ann", "bob"}


async def test_a_reader_that_reads_nothing_is_bounded_and_cut(servers: ServerPool, kind: Kind) -> None:
    """The broadcasts are much larger than what the server may keep for one client."""
    stream = unique("cursor:")  # its history size is 0, so missed messages cannot be read later
    server = servers.get(kind, PUBLIC_STREAMS=True, MAX_PENDING_SIZE=64 * 1024)
    text = "x" * 100_000
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(f"GET /events?stream={quote(stream)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = await asyncio.to_thread(slow.recv, 1000)
        assert b" 200 " in head.split(b"\r\n")[0]
        async with EventReader(base(server), streams(stream)) as fast, asyncio.timeout(60):
            await fast.until_type("confirm_subscription")
            before = server.rss
            while "too_slow" not in server.log:
                await server.call("broadcast", stream, text)
            assert server.rss - before < 30_000_000
            await server.call("broadcast", stream, "last")
            await fast.until(lambda: fast.events and fast.events[-1].data == "last")
    assert "Traceback" not in server.log
