"""Signals for application code. The errors of receivers are logged.

Receivers of the presence signals run in a thread of the handler pool, one event after another. An event is sent in one
process only: in the process whose client has joined or left, or in the process that has removed a member whose client
disappeared.

An event is not sent if that process dies, if the response of the store is lost, or if too many events are waiting for
slow receivers. After Redis has lost its latest data, `presence_left` may be sent twice. So use `presence_for` to find
out who is present.
"""

from django.dispatch import Signal

#: Sent when a member has joined a stream. The arguments are `sender` (the class of the presence store), `stream`,
#: `namespace` (`""` without the setting `NAMESPACE`), `id` and `info`.
presence_joined = Signal()

#: Sent when a member has left a stream. The arguments are those of `presence_joined`. `info` is the member's last info.
presence_left = Signal()

#: Sent when a broadcast or a `forget()` fails after it has waited for a commit. The signal is sent in the thread of the
#: commit. The arguments are `sender` (the class of the stream store), `stream`, `namespace` and `error`. If `error` is
#: a `BroadcastUncertain`, the message may have been stored.
broadcast_failed = Signal()
