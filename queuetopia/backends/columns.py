"""Columns, defaults and indexes that each database spells differently; models.py is built of them."""

from datetime import UTC, datetime

from django.db import migrations, models
from django.db.models.lookups import Exact

from ..lines import row_name
from ..times import refuse_wrong

# The times there are, with room for time zones at both ends.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 2, tzinfo=UTC)


class DatabaseNow(models.Func):
    """The database's clock when the *statement* began, in UTC.

    Django's own Now() is the session's local time on MySQL, whatever time zone that is. Raises TimesRefused where
    Django would read another time than it writes: in a migration too.
    """

    template = "STATEMENT_TIMESTAMP()"
    output_field = models.DateTimeField()
    allowed_default = True

    def as_sql(self, compiler, connection, **context):  # type: ignore[override]
        refuse_wrong(connection)
        return super().as_sql(compiler, connection, **context)

    def as_mysql(self, compiler, connection, **context):
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)

    def as_sqlite(self, compiler, connection, **context):
        template = "STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW')"
        return self.as_sql(compiler, connection, template=template, **context)


def database_now(connection):
    """Return the database's clock as an aware datetime."""
    sql = {
        "postgresql": "SELECT clock_timestamp()",
        "mysql": "SELECT UTC_TIMESTAMP(6)",
        "sqlite": "SELECT STRFTIME('%Y-%m-%d %H:%M:%f000', 'NOW')",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(sql)
        (now,) = cursor.fetchone()
    if connection.vendor == "sqlite":
        now = models.DateTimeField().to_python(now)
    return now if now.tzinfo else now.replace(tzinfo=UTC)


def are_times(*columns) -> models.Q:
    """Return the condition that columns hold times as Python knows them, or NULL.

    PostgreSQL also has 'infinity', and years before 1 and after 9999: reading one of these raises an error, and
    with it all rows that are read in the same query.
    """
    is_time = (models.Q(**{f"{column}__gte": EARLIEST, f"{column}__lt": LATEST}) for column in columns)
    return models.Q(*(models.Q(**{column: None}) | is_so for column, is_so in zip(columns, is_time, strict=True)))


class ExactCharField(models.CharField):
    """Text compared character by character: case and trailing spaces count on every database.

    PostgreSQL and SQLite compare so by themselves. MySQL's default ignores case, and even its ``_bin``
    collations pad with spaces, so the column names one that does not. The name of an independent job's queue is
    stored, and compared, as that of its row.
    """

    def get_prep_value(self, value):
        return super().get_prep_value(row_name(value))

    def db_type(self, connection):
        if connection.vendor != "mysql":
            return super().db_type(connection)
        collation = "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"
        return f"varchar({self.max_length}) CHARACTER SET utf8mb4 COLLATE {collation}"


class WideCharField(models.CharField):
    """Text of users or programs: any character can be stored, whatever the database's own character set is."""

    def db_type(self, connection):
        return _wide(super().db_type(connection), connection)


class WideTextField(models.TextField):
    """Longer text of users or programs."""

    def db_type(self, connection):
        return _wide(super().db_type(connection), connection)


def _wide(column, connection):
    return f"{column} CHARACTER SET utf8mb4" if connection.vendor == "mysql" else column


class AlterOnMySQL(migrations.AlterField):
    """Alters a column where its type has changed: elsewhere SQLite would write the whole table anew for nothing."""

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        if schema_editor.connection.vendor == "mysql":
            super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(self, app_label, schema_editor, from_state, to_state):
        """Leave the column as it is: it may have text by now that the old one could not take."""


class Widen(AlterOnMySQL):
    """Lets a column hold longer text, where the database knows how long it may be: all but SQLite."""

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        if schema_editor.connection.vendor != "sqlite":
            migrations.AlterField.database_forwards(self, app_label, schema_editor, from_state, to_state)


class AddPartialIndex(migrations.AddIndex):
    """Adds an index over few rows, where the database has such: elsewhere it would be one over all."""

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        if schema_editor.connection.features.supports_partial_indexes:
            super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(self, app_label, schema_editor, from_state, to_state):
        if schema_editor.connection.features.supports_partial_indexes:
            super().database_backwards(app_label, schema_editor, from_state, to_state)


class UniqueWhileUnfinished(models.UniqueConstraint):
    """At most one unfinished job has the same values of ``fields``, the last of which is a key that may be NULL.

    MySQL has no partial indexes, and NULLs do not collide: there a generated column, ``<key>_live``, is the key until
    the job has ended.
    """

    def __init__(self, *, fields, name, condition=None):
        self.key = fields[-1]
        condition = models.Q(done_at=None) & models.Q(**{f"{self.key}__isnull": False})
        super().__init__(fields=fields, name=name, condition=condition)

    def _check(self, model, connection):
        return []  # Django warns where the condition alone would have no effect

    check = _check  # its name in later versions of Django

    def create_sql(self, model, schema_editor):
        if schema_editor.connection.vendor != "mysql":
            return super().create_sql(model, schema_editor)
        *others, key = (model._meta.get_field(name) for name in self.fields)
        live, names = live_column(self.key), ", ".join(field.column for field in others)
        return (
            f"ALTER TABLE {model._meta.db_table} ADD COLUMN {live} {key.db_type(schema_editor.connection)} "
            f"GENERATED ALWAYS AS (IF(done_at IS NULL, {key.column}, NULL)) VIRTUAL, "
            f"ADD UNIQUE INDEX {self.name} ({names}, {live})"
        )

    def remove_sql(self, model, schema_editor):
        if schema_editor.connection.vendor != "mysql":
            return super().remove_sql(model, schema_editor)
        return f"ALTER TABLE {model._meta.db_table} DROP INDEX {self.name}, DROP COLUMN {live_column(self.key)}"


def live_column(key: str) -> str:
    """Return the name of MySQL's column that has the key of unfinished jobs only."""
    return f"{key}_live"


def is_live(connection, key: str, value: str) -> models.Q:
    """Return the condition that an unfinished job has this key, as its index can be searched by it."""
    if connection.vendor != "mysql":
        return models.Q(**{key: value})
    live = models.expressions.RawSQL(live_column(key), (), models.CharField())  # noqa: S611 - a name of ours
    return models.Q(Exact(live, value))


class PartialIndex(models.Index):
    """An index over the rows where ``condition`` holds.

    MySQL has no partial indexes: there ``fallback`` (the fields, and those of the condition) is indexed whole.
    """

    def __init__(self, *, fields, condition, fallback, name):
        self.fallback, self.partial = fallback, condition
        super().__init__(fields=fields, name=name)  # Django warns where the condition of an index has no effect

    def create_sql(self, model, schema_editor, using="", **kwargs):
        if schema_editor.connection.features.supports_partial_indexes:
            partial = models.Index(fields=self.fields, name=self.name, condition=self.partial)
            return partial.create_sql(model, schema_editor, using=using, **kwargs)
        whole = models.Index(fields=self.fallback, name=self.name)
        return whole.create_sql(model, schema_editor, using=using, **kwargs)

    def deconstruct(self):
        path, args, kwargs = super().deconstruct()
        return path, args, {**kwargs, "condition": self.partial, "fallback": self.fallback}
