"""Sets storage parameters of the tables whose rows change often, on PostgreSQL.

Rows of streams are updated with each message. If a page has free space, the new version of the row is stored in the
same page, and the space of the old one is reused without a vacuum. With these parameters, autovacuum processes the
outbox and the transient messages after 1000 deleted rows, and the entries after 1000 deleted rows plus 2 % of all rows.

The lock of ALTER TABLE … SET blocks no query, but it waits for a vacuum of the table or for CREATE INDEX CONCURRENTLY.
So each of these statements is executed in a transaction of its own, which waits for a few seconds at most. A failure is
only logged, because the tables also work without the parameters.
"""

import logging
from typing import Any, Final

from django.db import DatabaseError, migrations, router, transaction

logger = logging.getLogger("reliable_cable")

#: The storage parameters of each table, by the name of its model.
STORAGE: Final = {
    "Stream": "fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05",
    "StreamEntry": "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000",
    "OutboxEntry": "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000",
    "TransientEntry": "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000",
}

#: How long, in seconds, each statement waits for its lock. After 1 s (`deadlock_timeout`), PostgreSQL ends an automatic
#: vacuum that blocks the statement.
LOCK_TIMEOUT: Final = 3.0


def set_storage(apps: Any, schema_editor: Any) -> None:
    for name, parameters in STORAGE.items():
        _alter(apps, schema_editor, name, f"SET ({parameters})")


def reset_storage(apps: Any, schema_editor: Any) -> None:
    for name, parameters in STORAGE.items():
        names = ", ".join(parameter.split(" = ")[0] for parameter in parameters.split(", "))
        _alter(apps, schema_editor, name, f"RESET ({names})")


def _alter(apps: Any, schema_editor: Any, name: str, change: str) -> None:
    """Change the table of a model, if it is on PostgreSQL. If this fails, log the reason and the statement."""
    connection, model = schema_editor.connection, apps.get_model("reliable_cable", name)
    if connection.vendor != "postgresql" or not router.allow_migrate_model(connection.alias, model):
        return
    statement = f"ALTER TABLE {model._meta.db_table} {change}"
    try:
        with transaction.atomic(using=connection.alias):
            schema_editor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT * 1000:.0f}")
            schema_editor.execute(statement)
    except DatabaseError as error:
        logger.warning(
            "The storage parameters of a table were not changed: %s. The table works without them, but may need more "
            "space. To change them later, execute: %s",
            str(error).strip().rstrip("."),
            statement,
        )


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("reliable_cable", "0005_presence"),
    ]

    operations = [
        migrations.RunPython(set_storage, reset_storage),
    ]
