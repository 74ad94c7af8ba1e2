"""A DBA's trigger: the database refuses to update certain rows."""

from django.db import connection


def refuse_rows(table: str, condition: str) -> None:
    """Make the database refuse each UPDATE of ``table`` whose new row meets the condition on NEW."""
    execute(*_CREATE[connection.vendor](table, condition))


def allow_rows(table: str) -> None:
    """Drop the trigger of ``refuse_rows``."""
    on_table = f" ON {table}" if connection.vendor == "postgresql" else ""
    execute(f"DROP TRIGGER IF EXISTS refuse{on_table}")


def execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


_CREATE = {
    "postgresql": lambda table, condition: [
        f"CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN"
        " RAISE EXCEPTION 'not this row'; END IF; RETURN NEW; END $$",
        f"CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
    "mysql": lambda table, condition: [
        f"CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW IF {condition} THEN"  # noqa: S608
        " SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this row'; END IF"
    ],
    "sqlite": lambda table, condition: [
        f"CREATE TRIGGER refuse BEFORE UPDATE ON {table} WHEN {condition}"
        " BEGIN SELECT RAISE(ABORT, 'not this row'); END"
    ],
}
