"""The former path of the base class of presence stores. Engines of other packages may still import it from here."""

from reliable_cable.stores.presence.base import OUTAGE_SHARE
from reliable_cable.stores.presence.base import UNHEARD_TIME as UNHEARD_TIME
from reliable_cable.stores.presence.base import Member as Member
from reliable_cable.stores.presence.base import PresenceEvent as PresenceEvent
from reliable_cable.stores.presence.base import PresenceInfo as PresenceInfo
from reliable_cable.stores.presence.base import PresenceListener as PresenceListener
from reliable_cable.stores.presence.base import PresenceMissed as PresenceMissed
from reliable_cable.stores.presence.base import PresenceStore as PresenceStore
from reliable_cable.stores.presence.base import Refreshed as Refreshed

OUTAGE_PART = OUTAGE_SHARE
