"""Signals for application code. Errors that a receiver raises are logged.

Receivers of the presence signals run in a thread of the handler pool, one event after another. Each event is sent in
one process: the process whose client joined or left, or the one that removed a member whose client had disappeared. An
event is not sent if that process dies, if the response of the store is lost, or if too many events wait for slow
receivers. After Redis has lost its latest data, `presence_left` may be sent twice. So use `presence_for` to read the
members.
"""

from django.dispatch import Signal

#: A member joined a stream. Arguments: `sender` (the class of the presence store), `stream`, `namespace` (`""` without
#: the setting `NAMESPACE`), `id`, `info`.
presence_joined = Signal()

#: A member left a stream. The arguments are those of `presence_joined`; `info` is the last known one.
presence_left = Signal()

#: A broadcast or a `forget()` that was delayed until after a commit failed. The signal is sent in the thread that
#: committed. Arguments: `sender` (the class of the stream store), `stream`, `namespace`, `error`. If `error` is a
#: `BroadcastUncertain`, the message may have been stored.
broadcast_failed = Signal()
