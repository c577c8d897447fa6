"""Creates the tables of presence, which are unlogged on PostgreSQL.

PostgreSQL writes no log of the changes to an unlogged table. So the frequent updates of presence (each member is renewed
three times in PRESENCE_TTL) cost no I/O for the log, and are not sent to replicas. In return, a crash of PostgreSQL
empties these tables, and a promoted replica has none of their rows. Presence allows for that: a new incarnation begins,
and the servers add their members again.

The tables of `PresenceStream` and `PresenceSession` leave half of each page free, so that rows can be updated in place.
"""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models
from django.db.migrations.operations.base import Operation


class SetUnlogged(Operation):
    """Makes the empty table of a model unlogged, if the database is PostgreSQL.

    Args:
        name: the name of the model.
        fillfactor: how full, in percent, PostgreSQL makes the pages of the table when it inserts rows.
    """

    reduces_to_sql = True
    reversible = True

    def __init__(self, name: str, fillfactor: int = 100) -> None:
        self.name = name
        self.fillfactor = fillfactor

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return self.__class__.__qualname__, [], {"name": self.name, "fillfactor": self.fillfactor}

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing, because models do not have this property."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.name)
        connection = schema_editor.connection
        if connection.vendor == "postgresql" and self.allow_migrate_model(connection.alias, model):
            table = schema_editor.quote_name(model._meta.db_table)
            schema_editor.execute(f"ALTER TABLE {table} SET UNLOGGED")
            schema_editor.execute(f"ALTER TABLE {table} SET (fillfactor = {self.fillfactor})")

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Do nothing, because the table is deleted next."""

    def describe(self) -> str:
        return f"Make the table of {self.name} unlogged on PostgreSQL"


class Migration(migrations.Migration):
    dependencies = [
        ("reliable_cable", "0004_session_parts"),
    ]

    operations = [
        migrations.CreateModel(
            name="PresenceStream",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=255, unique=True)),
                ("incarnation", models.CharField(max_length=32)),
                ("lineage", models.CharField(blank=True, default="", max_length=64)),
                ("tail", models.BigIntegerField(default=0)),
                ("joins", models.BigIntegerField(default=0)),
                ("used_at", models.FloatField()),
            ],
        ),
        migrations.CreateModel(
            name="PresenceSweep",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.FloatField()),
                ("grace_end", models.FloatField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="PresenceSession",
            fields=[
                ("key", models.CharField(max_length=32, primary_key=True, serialize=False)),
                ("member_key", models.CharField(max_length=32)),
                ("member", models.TextField()),
                ("info", models.TextField()),
                ("number", models.BigIntegerField()),
                ("member_number", models.BigIntegerField()),
                ("expires", models.FloatField()),
                (
                    "stream",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        to="reliable_cable.presencestream",
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["stream", "member_key"], name="reliable_cable_member")],
            },
        ),
        migrations.CreateModel(
            name="PresenceEntry",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("number", models.BigIntegerField()),
                ("type", models.CharField(max_length=5)),
                ("member_key", models.CharField(max_length=32)),
                ("member", models.TextField()),
                ("info", models.TextField()),
                ("created", models.FloatField()),
                (
                    "stream",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        to="reliable_cable.presencestream",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "presence entries",
                "indexes": [models.Index(fields=["stream", "member_key"], name="reliable_cable_leave")],
                "constraints": [models.UniqueConstraint(fields=("stream", "number"), name="reliable_cable_presence")],
            },
        ),
        SetUnlogged("PresenceStream", fillfactor=50),
        SetUnlogged("PresenceSweep"),
        SetUnlogged("PresenceSession", fillfactor=50),
        SetUnlogged("PresenceEntry"),
    ]
