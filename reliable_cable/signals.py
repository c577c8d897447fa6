"""Signals that application code can listen to. Errors of receivers are logged.

Receivers of the presence signals run in a thread of the handlers' pool, one event after another. Each event is
signalled once, in one process: the one whose client came or left, or that noticed who was gone. If that process dies,
or the store's answer is lost, it is not signalled: `presence_for` tells who is there. After a Redis came back without
its latest data, a leave may be signalled twice.
"""

from __future__ import annotations

from django.dispatch import Signal

#: Someone came to a stream. Arguments: `sender` (the presence store's class), `stream`, `id`, `info`.
presence_joined = Signal()

#: Someone left a stream. Arguments as above; `info` is the last that was known.
presence_left = Signal()

#: A broadcast or a `forget()` failed after the commit that it waited for. The signal is sent in the thread that
#: committed. Arguments: `sender` (the stream store's class), `stream`, `error`. If `error` is a `BroadcastUncertain`,
#: the message may have been stored.
broadcast_failed = Signal()
