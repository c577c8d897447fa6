"""Signals for application code. Errors that a receiver raises are logged.

Receivers of the presence signals run in a thread of the handler pool, one event after another. Each event is sent in
one process: the process whose client joined or left, or the one that removed a member whose client had disappeared. An
event is not sent if that process dies, if the response of the store is lost, or if too many events wait for slow
receivers. After Redis has lost its latest data, `presence_left` may be sent twice. So use `presence_for` to read the
members.
"""

from django.dispatch import Signal

#: Sent when a member joined a stream. Arguments: `sender` (the class of the presence store), `stream`, `namespace`
#: (`""` without the setting `NAMESPACE`), `id`, `info`.
presence_joined = Signal()

#: Sent when a member left a stream. The arguments are those of `presence_joined`; `info` is the last known one.
presence_left = Signal()

#: Sent when a broadcast or a `forget()` fails after the commit that it waited for, in the thread that committed.
#: Arguments: `sender` (the class of the stream store), `stream`, `namespace`, `error`. If `error` is a
#: `BroadcastUncertain`, the message may have been stored.
broadcast_failed = Signal()
