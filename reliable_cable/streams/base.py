"""The former path of the base class of stream stores. Engines of other packages may still import it from here."""

from reliable_cable.stores.streams.base import IDLE_STREAM_TTL as IDLE_STREAM_TTL
from reliable_cable.stores.streams.base import NOWHERE as NOWHERE
from reliable_cable.stores.streams.base import YOUNG_SIZE as YOUNG_SIZE
from reliable_cable.stores.streams.base import YOUNG_TIME as YOUNG_TIME
from reliable_cable.stores.streams.base import Advanced as Advanced
from reliable_cable.stores.streams.base import Message as Message
from reliable_cable.stores.streams.base import Published as Published
from reliable_cable.stores.streams.base import StreamEvent as StreamEvent
from reliable_cable.stores.streams.base import StreamListener as StreamListener
from reliable_cable.stores.streams.base import StreamStore as StreamStore
from reliable_cable.stores.streams.base import Transient as Transient
from reliable_cable.stores.streams.base import moved as moved
