"""Signals that application code can listen to.

Receivers run in a thread of the handlers' pool, one event after another; what they raise is logged.
"""

from __future__ import annotations

from django.dispatch import Signal

#: Someone came to a stream. Arguments: `sender` (the presence store's class), `stream`, `id`, `info`.
presence_joined = Signal()

#: Someone left a stream. Arguments as above; `info` is the last that was known.
presence_left = Signal()
