"""Executes one storm (see Contributing: The storm of runs): starts runs, causes faults, and checks the results."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.server import LOCAL, Server
from tests.support.storms import StormOutcome

from .content import has_prefix, make_items
from .durable import LIVE, DurableRunReader, SharedStream
from .npm import Followers, FollowingReader, NodeProcess
from .plan import MAX_ATTEMPTS, PATIENCE, Plan, RunPlan, now
from .readers import AgentReader, ChannelReader, Reader, UiReader, expected
from .stage import KINDS as KINDS_OF_SERVERS
from .stage import USER, Stage, Writer
from .truth import Answer, RunTruth, as_followed

#: How often, in seconds, the rows of the runs are read.
POLL = 0.2
#: How often, in seconds, the runs of dead writers are marked as failed. In projects, a scheduled task does this.
EXPIRE = 5.0
#: How many times to try to start a server.
ATTEMPTS = 5
#: A word in the error message of runs whose writer has died.
DIED = "interrupted"

#: The kinds of faults, with their weights in the random choice.
KINDS = {"client reset": 4, "server SIGKILL": 3, "server SIGTERM": 1, "writer SIGKILL": 3, "writer frozen": 1}


@dataclass(slots=True)
class Outcome(StormOutcome[Plan, str]):
    """The results of a storm."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Storm:
    """Servers, writers, readers and faults.

    Args:
        plan: the plan of the storm.
        folder: the folder for databases and logs.
        node: the path of Node, if the plan has readers in Node.
        progress: called with a line of text before each step.
    """

    def __init__(
        self, plan: Plan, folder: Path, node: str = "", progress: Callable[[str], None] = lambda text: None
    ) -> None:
        self._plan = plan
        self._node = node
        self._progress = progress
        self._rng = random.Random(plan.seed)
        self._stage = Stage(plan, folder)
        self._outcome = Outcome(plan, folder)
        self._http: httpx.AsyncClient
        self._followers: Followers | None = None
        self._durable: NodeProcess | None = None
        self._rows: dict[str, dict[str, Any]] = {}
        #: The runs that have not ended, and an event that is set after each read of their rows.
        self._active: set[str] = set()
        self._polled = asyncio.Event()
        self._truths: list[tuple[RunPlan, RunTruth]] = []
        self._busy: set[object] = set()
        self._done = 0

    async def run(self) -> Outcome:
        """Run the storm, and return its results."""
        began = now()
        async with AsyncExitStack() as stack:
            self._progress(f"starting servers; files are in {self._outcome.folder}")
            await stack.enter_async_context(self._stage)
            self._http = await stack.enter_async_context(
                httpx.AsyncClient(
                    headers=self._stage.headers,
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
                    **{**LOCAL, "timeout": PATIENCE},
                )
            )
            if self._plan.npm:
                self._followers = await stack.enter_async_context(Followers(self._node, self._stage.address))
                durable = NodeProcess(self._node, "storm_durable.mjs", json.dumps(self._stage.headers))
                self._durable = await stack.enter_async_context(durable)
            poll = asyncio.create_task(self._poll())
            faults = asyncio.create_task(self._make_faults())
            limit = asyncio.Semaphore(self._plan.at_once)
            plans = [self._plan.choose(number, self._rng) for number in range(self._plan.runs)]
            seeds = [self._rng.getrandbits(32) for _ in plans]
            await asyncio.gather(
                *(self._drive(plan, random.Random(seed), limit) for plan, seed in zip(plans, seeds, strict=True))
            )
            faults.cancel()
            await asyncio.wait([faults])
            if not faults.cancelled() and (error := faults.exception()) is not None:
                self._outcome.complaints.append(f"a fault could not be made: {error!r}")
            poll.cancel()
            await asyncio.wait([poll])
            await self._judge()
            self._outcome.complaints += self._stage.dead_processes()
        self._read_logs()
        self._outcome.seconds = now() - began
        return self._outcome

    # -- runs ---------------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Read the rows of the active runs regularly, and mark the runs whose writer has died as failed."""
        expire_at = now() + EXPIRE
        while True:
            if self._active:
                self._rows |= await self._stage.call("run_rows", sorted(self._active))
            if now() > expire_at:
                expire_at = now() + EXPIRE
                self._outcome.counts["expired by the scheduled task"] += await self._stage.call("expire_runs")
            self._polled.set()
            self._polled.clear()
            await asyncio.sleep(POLL)

    async def _drive(self, plan: RunPlan, rng: random.Random, limit: asyncio.Semaphore) -> None:
        """Start a run and its readers, let writers write it, and wait until all readers have read it to its end."""
        async with limit:
            chat = f"{USER}-{plan.number}"
            run = await self._stage.call("start_chat_run", USER, chat)
            truth = RunTruth(run, chat)
            self._truths.append((plan, truth))
            readers = self._make_readers(truth, rng)
            if plan.ending == "stopped" and plan.stop == "channel":
                channel = readers[0]
                assert isinstance(channel, ChannelReader)
            else:
                channel = None
            longest = 1.5 * self._plan.duration
            tasks = [asyncio.create_task(reader.run(rng.uniform(0, longest))) for reader in readers]
            if self._durable is not None and self._plan.has_stream(plan.number):
                tasks.append(asyncio.create_task(self._share_stream(chat, _new(rng), self._durable)))
            self._active.add(run)
            attempt = 1
            while True:
                answer = await self._write(plan, truth, attempt, rng, channel)
                truth.answers[attempt] = answer
                self._outcome.counts[f"attempts {answer.status}"] += 1
                died = answer.status == "failed" and DIED in answer.error
                self._outcome.counts["attempts whose writer died"] += died
                if answer.status == "completed" or attempt == MAX_ATTEMPTS or not plan.retries:
                    break
                await self._stage.call("requeue_run", run)
                self._rows.pop(run, None)
                attempt += 1
                self._outcome.counts["retries"] += 1
            self._active.discard(run)
            truth.end()
            await asyncio.gather(*tasks)
            for reader in readers:
                self._outcome.complaints += reader.complaints
                for name, count in reader.counts.items():
                    self._outcome.counts[f"{reader.kind}: {name}"] += count
            self._done += 1
            if self._done % 20 == 0:
                self._progress(f"{self._done} runs have ended")

    def _make_readers(self, truth: RunTruth, rng: random.Random) -> list[Reader]:
        address, cookie = self._stage.address, self._stage.headers["Cookie"]
        readers: list[Reader] = [
            ChannelReader(truth, address, _new(rng), cookie, restoring=number % 2 == 0)
            for number in range(self._plan.channel_readers)
        ]
        readers += [
            UiReader(truth, address, _new(rng), self._http),
            AgentReader(truth, address, _new(rng), self._http),
        ]
        if self._followers is not None:
            readers.append(FollowingReader(truth, address, _new(rng), self._followers))
        if self._durable is not None:
            readers += [DurableRunReader(truth, address, _new(rng), self._durable, live) for live in LIVE]
        return readers

    async def _share_stream(self, name: str, rng: random.Random, node: NodeProcess) -> None:
        """Let producers write a durable stream, and readers read it, while a run is written."""
        plan = self._plan
        shared = SharedStream(name, self._stage.address, self._http, node, rng, plan.messages, plan.pause)
        await shared.run()
        self._outcome.findings += shared.findings
        self._outcome.complaints += shared.complaints
        for key, count in shared.counts.items():
            self._outcome.counts[f"durable streams: {key}"] += count

    async def _write(
        self, plan: RunPlan, truth: RunTruth, attempt: int, rng: random.Random, channel: ChannelReader | None
    ) -> Answer:
        """Let a writer write an attempt, and return the row at the end of the attempt."""
        ending = plan.ending if attempt == 1 else "completed"
        at = int(plan.at * self._plan.tokens)
        job = {
            "run": truth.run,
            "seed": plan.seed,
            "tokens": self._plan.tokens,
            "pause": self._plan.pause,
            "fails_at": at if plan.ending == "failed" else -1,
        }
        stop_at = now() + plan.at * self._plan.duration if ending == "stopped" else None
        given: tuple[Writer, int] | None = None
        while True:
            row = self._rows.get(truth.run, {})
            if row.get("attempt") == attempt:
                if row["status"] not in ("queued", "running"):
                    return Answer(**row)
                if row["status"] == "queued" and (given is None or not _is_alive(*given)):
                    # A writer that was killed before it began has lost the job. So the job is given again.
                    writer = rng.choice([each for each in self._stage.writers if each not in self._busy] or [None])
                    if writer is not None:
                        given = writer, writer.give(job)
            if stop_at is not None and now() >= stop_at and given is not None:
                stop_at = None
                await self._stop(plan, truth, channel)
            await self._polled.wait()

    async def _stop(self, plan: RunPlan, truth: RunTruth, channel: ChannelReader | None) -> None:
        if channel is not None:
            channel.stops = True
        elif plan.stop == "http":
            with contextlib.suppress(httpx.TransportError):
                await self._http.post(f"http://{self._stage.address}/runs/{truth.run}/stop")
        else:
            await self._stage.call("stop_run", truth.run)

    # -- faults -------------------------------------------------------------------------------------------------------

    async def _make_faults(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            for _ in range(self._plan.faults):
                await asyncio.sleep(self._plan.every)
                kind = self._rng.choices(list(KINDS), list(KINDS.values()))[0]
                task = asyncio.create_task(self._make(kind))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            if tasks:
                await asyncio.wait(tasks)

    async def _make(self, kind: str) -> None:
        if kind == "client reset":
            links = self._stage.web.links
            chosen = self._rng.sample(links, min(len(links), self._rng.randint(1, 10)))
            self._outcome.counts[f"fault: {kind}"] += self._stage.web.cut(chosen) > 0
            return
        things: list[Any] = list(self._stage.servers if kind.startswith("server") else self._stage.writers)
        free = [thing for thing in things if thing not in self._busy]
        if len(free) < 2:
            return
        thing = self._rng.choice(free)
        self._busy.add(thing)
        try:
            if not thing.alive:
                self._outcome.complaints.append(f"{thing.kind} has ended by itself")
            self._outcome.counts[f"fault: {kind}"] += 1
            if kind == "writer SIGKILL":
                await asyncio.to_thread(thing.kill)
                thing.start()
            elif kind == "writer frozen":
                thing.signal(signal.SIGSTOP)
                await asyncio.sleep(self._rng.uniform(0.5, 2) * self._plan.lease)
                thing.signal(signal.SIGCONT)
            else:
                if kind == "server SIGTERM" and thing.alive:
                    await thing.terminate()
                await self._restart(thing)
        except Exception as error:
            self._outcome.complaints.append(f"the fault {kind!r} failed: {error!r}")
        finally:
            self._busy.discard(thing)

    async def _restart(self, server: Server) -> None:
        """Start a server again. On a busy machine, this may take several attempts."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await server.restart()
            except RuntimeError:
                if attempt == ATTEMPTS:
                    raise

    # -- results ------------------------------------------------------------------------------------------------------

    async def _judge(self) -> None:
        """Compare the rows with what was written, and the answers of the readers with the rows."""
        counts, findings = self._outcome.counts, self._outcome.findings
        for plan, truth in self._truths:
            row = (await self._stage.call("run_rows", [truth.run]))[truth.run]
            if Answer(**row) != truth.final:
                findings.append(f"{truth.run}: the row has changed after the end: {row['status']} {truth.final}")
            for attempt, answer in truth.answers.items():
                items = make_items(plan.seed + attempt, self._plan.tokens)
                written = has_prefix(items, answer.text, answer.parts)
                if written is None or (answer.status == "completed" and written != len(items)):
                    findings.append(f"{truth.run}: attempt {attempt} ({answer.status}) is not what was written")
                counts["tokens"] += written or 0
            forms: dict[str, list[Any]] = {}
            for seen in truth.seen:
                kind = seen.reader
                if kind not in forms:
                    answers = truth.answers.values()
                    forms[kind] = (
                        [as_followed(one) for one in answers] if kind == "followRun" else expected(truth, kind)
                    )
                counts[f"{kind}: read to the end"] += 1
                if seen.answer not in forms[kind]:
                    findings.append(f"{truth.run}: {kind} differs: {_difference(seen.answer, truth)}")

    def _read_logs(self) -> None:
        for path in sorted(self._outcome.folder.glob("*.log")):
            errors = path.read_text(errors="replace").count("Traceback (most recent call last)")
            if path.stem in KINDS_OF_SERVERS:
                # Servers also log the errors of clients that leave during a handshake.
                self._outcome.counts["tracebacks in logs of servers"] += errors
            elif errors:
                self._outcome.complaints.append(f"{path.name} has {errors} tracebacks")


def _is_alive(writer: Writer, pid: int) -> bool:
    return writer.alive and writer.pid == pid


def _new(rng: random.Random) -> random.Random:
    return random.Random(rng.random())


def _difference(answer: Any, truth: RunTruth) -> str:
    """Return a short description of a reader's answer, and of the rows, which it should equal."""
    rows = [
        f"{one.attempt} {one.status}: {len(one.text)} characters, {len(one.parts)} parts, …{one.text[-30:]!r}"
        for one in truth.answers.values()
    ]
    values = [
        f"{len(value)} long, …{str(value)[-60:]!r}" if isinstance(value, str | list | dict) else value
        for value in answer
    ]
    return f"the reader has {values}; the rows have {rows}"
