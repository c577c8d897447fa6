"""Reliable real-time streams for Django Channels: each message arrives once and in order, even after a reconnect."""

from .actions import action as action
from .auth.tokens import cable_token as cable_token
from .broadcasting import abroadcast as abroadcast
from .broadcasting import abroadcast_batch as abroadcast_batch
from .broadcasting import aforget as aforget
from .broadcasting import ahistory as ahistory
from .broadcasting import aposition as aposition
from .broadcasting import broadcast as broadcast
from .broadcasting import broadcast_batch as broadcast_batch
from .broadcasting import forget as forget
from .broadcasting import history as history
from .broadcasting import position as position
from .channel import Channel as Channel
from .channel import state as state
from .consumer import CableConsumer as CableConsumer
from .disconnecting import adisconnect as adisconnect
from .disconnecting import arevoke as arevoke
from .disconnecting import disconnect as disconnect
from .disconnecting import revoke as revoke
from .exceptions import AsyncContextError as AsyncContextError
from .exceptions import BroadcastError as BroadcastError
from .exceptions import BroadcastUncertain as BroadcastUncertain
from .exceptions import CableError as CableError
from .exceptions import ChannelError as ChannelError
from .exceptions import InvalidIdentifier as InvalidIdentifier
from .exceptions import InvalidOption as InvalidOption
from .exceptions import InvalidPayload as InvalidPayload
from .exceptions import InvalidStreamName as InvalidStreamName
from .exceptions import NotSupported as NotSupported
from .exceptions import PayloadTooLarge as PayloadTooLarge
from .exceptions import StoreError as StoreError
from .presence import presence_for as presence_for
from .protocol.positions import PagePosition as PagePosition
from .protocol.positions import StreamPosition as StreamPosition
from .rendering import abroadcast_template as abroadcast_template
from .rendering import broadcast_template as broadcast_template
from .reply import Snapshot as Snapshot
from .signing import signed_stream_name as signed_stream_name

__version__ = "0.1.0"
