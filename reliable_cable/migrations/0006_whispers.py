from typing import Any

from django.db import DatabaseError, migrations, models, transaction

#: The tables whose rows change often, and their storage parameters. Rows of streams are updated with each message. If a
#: page has free space, the new version of the row is stored in the same page, and the space of the old one is reused
#: without a vacuum. Vacuums of the other tables begin after a bounded number of deleted rows.
STORAGE = {
    "reliable_cable_stream": "fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05",
    "reliable_cable_streamentry": "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000",
    "reliable_cable_outboxentry": "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000",
    "reliable_cable_transiententry": "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000",
}

#: Statements that a server may refuse. The table works as well if it is logged, but a server may refuse to change it, for
#: example if the table is published by name for logical replication. Ids must not begin again after a crash, because
#: listeners remember the ids of the last minute. Since PostgreSQL 15, the sequence of an unlogged table would do so.
#: Earlier versions do not know the second statement, and log all sequences.
UNLOGGED = [
    "ALTER TABLE reliable_cable_transiententry SET UNLOGGED",
    "ALTER SEQUENCE reliable_cable_transiententry_id_seq SET LOGGED",
]


def set_storage(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor != "postgresql":
        return
    for table, parameters in STORAGE.items():
        schema_editor.execute(f"ALTER TABLE {table} SET ({parameters})")
    for statement in UNLOGGED:
        try:
            with transaction.atomic(using=schema_editor.connection.alias):
                schema_editor.execute(statement)
        except DatabaseError:
            pass


def reset_storage(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor != "postgresql":
        return
    schema_editor.execute("ALTER TABLE reliable_cable_transiententry SET LOGGED")
    for table, parameters in STORAGE.items():
        names = ", ".join(parameter.split(" = ")[0] for parameter in parameters.split(", "))
        schema_editor.execute(f"ALTER TABLE {table} RESET ({names})")


class Migration(migrations.Migration):
    dependencies = [
        ("reliable_cable", "0005_presence"),
    ]

    operations = [
        migrations.AddField(
            model_name="transiententry",
            name="whisper",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.RunPython(set_storage, reset_storage),
    ]
