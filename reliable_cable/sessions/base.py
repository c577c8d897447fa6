"""The former path of the base class of session stores. Engines of other packages may still import it from here."""

from reliable_cable.stores.sessions.base import CLOCK_MARGIN as CLOCK_MARGIN
from reliable_cable.stores.sessions.base import MAX_SID_LENGTH as MAX_SID_LENGTH
from reliable_cable.stores.sessions.base import SessionRecord as SessionRecord
from reliable_cable.stores.sessions.base import SessionStore as SessionStore
from reliable_cable.stores.sessions.base import is_revoked as is_revoked
from reliable_cable.stores.sessions.base import is_session_id as is_session_id
