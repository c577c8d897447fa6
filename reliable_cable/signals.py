"""Signals that application code can listen to.

Receivers run in a thread of the handlers' pool, one event after another; what they raise is logged. Each event is
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
