"""Tools for testing channels, connections and broadcasts without a server and without Redis."""

from .broadcasts import CapturedBroadcast as CapturedBroadcast
from .broadcasts import assert_broadcasts as assert_broadcasts
from .broadcasts import assert_no_broadcasts as assert_no_broadcasts
from .broadcasts import capture_broadcasts as capture_broadcasts
from .cases import CableTestCase as CableTestCase
from .cases import CableTestMixin as CableTestMixin
from .channel_tester import ChannelTester as ChannelTester
from .communicator import CableCommunicator as CableCommunicator
from .isolation import isolated_cable as isolated_cable
from .subscription import CableSubscription as CableSubscription
from .subscription import CallFailed as CallFailed
