"""The former path of the interface of session stores, for settings and engines that name it."""

from reliable_cable.stores.sessions.base import CLOCK_MARGIN as CLOCK_MARGIN
from reliable_cable.stores.sessions.base import MAX_SID_LENGTH as MAX_SID_LENGTH
from reliable_cable.stores.sessions.base import SessionRecord as SessionRecord
from reliable_cable.stores.sessions.base import SessionStore as SessionStore
from reliable_cable.stores.sessions.base import is_revoked as is_revoked
from reliable_cable.stores.sessions.base import is_session_id as is_session_id
