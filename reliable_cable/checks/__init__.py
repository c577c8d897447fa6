"""The system checks. The ids of checks never change, so that `SILENCED_SYSTEM_CHECKS` can list them.

| id | problem |
|---|---|
| `reliable_cable.E001` | The setting `RELIABLE_CABLE` has an unknown key, a wrong type or an impossible value. |
| `reliable_cable.E002` | Several channel classes have the same name. |
| `reliable_cable.E003` | The engine cannot be imported, or lacks a feature that the settings require. |
| `reliable_cable.E004` | `DATABASE` names a database that cannot store streams, or `NOTIFY` one without LISTEN. |
| `reliable_cable.E005` | All streams are public. Only `check --deploy` checks this. |
| `reliable_cable.E006` | The settings of tokens need a package that is missing, or name an invalid authenticator. |
| `reliable_cable.E007` | A setting needs the app of runs, which is missing, or names a class that cannot be used. |
| `reliable_cable.E008` | An app needs the history of streams, which is in anycable-go (`BROADCAST_ADAPTER`). |
| `reliable_cable.E009` | The consumer that answers the calls of anycable-go cannot be used. |
| `reliable_cable.E010` | The streams of runs keep no history. |
| `reliable_cable.W001` | SQLite is configured so that concurrent transactions fail or wait for each other. |
| `reliable_cable.W002` | `runserver` serves no WebSockets. |
| `reliable_cable.W003` | All streams are public although `DEBUG` is off. `check --deploy` reports E005 instead. |
| `reliable_cable.W004` | A channel layer of channels-redis fails when it is idle, because of redis-py 8. |
| `reliable_cable.W005` | Streams or presence are in the memory of one process. Only `check --deploy` checks this. |
| `reliable_cable.W006` | Database connections are reused without health checks. Only `check --deploy` checks this. |
| `reliable_cable.W007` | A method of a channel is never called, because of its name or the order of base classes. |
| `reliable_cable.W008` | The secret that signs tokens is too short. |
| `reliable_cable.W009` | The URLs of runs are missing although a setting needs them, or included although none does. |
| `reliable_cable.W010` | `RUN_DURABLE_STREAMS` is set, but the streams of clients would not be durable. |
| `reliable_cable.W011` | A setting has no effect on anycable-go, or anycable-go derives its key from another secret. |
| `reliable_cable.W012` | A part of a channel has no effect behind anycable-go. |
| `reliable_cable.W013` | `connect` of a consumer sets an attribute that is missing in later calls of anycable-go. |
| `reliable_cable.W014` | A connection pooler does not pass on the notifications of PostgreSQL. |
| `reliable_cable.W015` | Calls of anycable-go are answered, but no broadcasts are sent to it. |

If the settings are invalid (E001), the checks that need them are skipped. For W001, the check of the journal mode needs
a database connection. It runs only when Django checks databases, as in `migrate` and `check --database default`. The
checks of the app of runs are in `reliable_cable.runs.checks`.
"""

from .adapters import check_broadcast_adapter as check_broadcast_adapter
from .adapters import check_unused_settings as check_unused_settings
from .anycable import check_missing_adapter as check_missing_adapter
from .anycable import check_remote_attributes as check_remote_attributes
from .anycable import check_remote_channels as check_remote_channels
from .anycable import check_rpc_consumer as check_rpc_consumer
from .channel_layers import check_channel_layers as check_channel_layers
from .channels import check_channel_names as check_channel_names
from .channels import check_handler_names as check_handler_names
from .channels import check_order_of_bases as check_order_of_bases
from .databases import check_database as check_database
from .databases import check_health_checks as check_health_checks
from .databases import check_journal_mode as check_journal_mode
from .databases import check_notify_alias as check_notify_alias
from .databases import check_transaction_pooling as check_transaction_pooling
from .settings import check_engine as check_engine
from .settings import check_public_streams as check_public_streams
from .settings import check_public_streams_of_deployments as check_public_streams_of_deployments
from .settings import check_runs_app as check_runs_app
from .settings import check_runserver as check_runserver
from .settings import check_settings as check_settings
from .settings import check_stores_in_memory as check_stores_in_memory
from .settings import check_tokens as check_tokens
from .valid_settings import TAG as TAG
