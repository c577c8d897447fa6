"""Adds the column `whisper` to the table of transient messages, and makes this table unlogged on PostgreSQL.

All of this needs a lock that blocks the polls of all servers. While the migration waits for the lock, for example because
of a backup, new polls wait behind it. So it waits for the lock only for a short time, lets the polls pass, and tries
again. Once it has this lock, it does not have to wait for another one.
"""

import logging
import time
from typing import Any, Final

from django.db import DatabaseError, OperationalError, migrations, models, router, transaction

logger = logging.getLogger("reliable_cable")

#: How long, in seconds, an attempt waits for the lock. After 1 s (`deadlock_timeout`), PostgreSQL ends an automatic
#: vacuum that blocks the attempt.
LOCK_TIMEOUT: Final = 2.0
#: The number of attempts to get the lock, and the pause between two of them, in seconds.
ATTEMPTS: Final = 30
PAUSE: Final = 1.0

#: The beginnings of the codes (SQLSTATE) of errors that may be gone at the next `migrate`: the connection is lost, a
#: transaction was rolled back, the server lacks resources, a lock was not available, or the server was stopped.
PASSING: Final = ("08", "40", "53", "55P03", "57", "58")


def lock(apps: Any, schema_editor: Any) -> None:
    """Lock the table until the end of the transaction.

    Raises:
        django.db.OperationalError: another transaction has used the table for a long time.
    """
    if not _is_used(apps, schema_editor):
        return
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with transaction.atomic(using=schema_editor.connection.alias):
                schema_editor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT * 1000:.0f}")
                schema_editor.execute("LOCK TABLE reliable_cable_transiententry IN ACCESS EXCLUSIVE MODE")
        except OperationalError as error:
            if attempt == ATTEMPTS or _code(error) != "55P03":
                raise
            if attempt == 1:
                logger.warning(
                    "The migration waits for the table reliable_cable_transiententry, which another transaction uses, "
                    "such as a backup. It tries again for up to %d s.",
                    ATTEMPTS * (LOCK_TIMEOUT + PAUSE),
                )
            time.sleep(PAUSE)
        else:
            return


def set_unlogged(apps: Any, schema_editor: Any) -> None:
    """Make the table unlogged. If the server refuses this, log the reason: the table also works if it is logged.

    A server refuses it, for example, if the table is published by name for logical replication.
    """
    if not _is_used(apps, schema_editor):
        return
    connection = schema_editor.connection
    try:
        with transaction.atomic(using=connection.alias):
            schema_editor.execute("ALTER TABLE reliable_cable_transiententry SET UNLOGGED")
            # Ids must not begin at 1 again after a crash, because listeners remember the ids of the last minute. Since
            # PostgreSQL 15, the sequence of an unlogged table is unlogged, too. Earlier versions log all sequences.
            if connection.pg_version >= 150000:
                schema_editor.execute("ALTER SEQUENCE reliable_cable_transiententry_id_seq SET LOGGED")
    except DatabaseError as error:
        if (code := _code(error)) is None or code.startswith(PASSING):
            raise
        logger.warning(
            "The table reliable_cable_transiententry stays logged, so whispers cause more writes: %s.",
            str(error).strip().rstrip("."),
        )


def set_logged(apps: Any, schema_editor: Any) -> None:
    lock(apps, schema_editor)
    if _is_used(apps, schema_editor):
        schema_editor.execute("ALTER TABLE reliable_cable_transiententry SET LOGGED")


def _is_used(apps: Any, schema_editor: Any) -> bool:
    """Return whether the database is PostgreSQL and contains the table."""
    connection, model = schema_editor.connection, apps.get_model("reliable_cable", "TransientEntry")
    return connection.vendor == "postgresql" and router.allow_migrate_model(connection.alias, model)


def _code(error: DatabaseError) -> str | None:
    """Return the code (SQLSTATE) of an error. Psycopg 3 and psycopg2 name it differently."""
    return getattr(error.__cause__, "sqlstate", None) or getattr(error.__cause__, "pgcode", None)


class Migration(migrations.Migration):
    dependencies = [
        ("reliable_cable", "0006_storage_parameters"),
    ]

    operations = [
        migrations.RunPython(lock, migrations.RunPython.noop),
        migrations.AddField(
            model_name="transiententry",
            name="whisper",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.RunPython(set_unlogged, set_logged),
    ]
