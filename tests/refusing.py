"""A DBA's trigger: the database refuses to update certain rows."""

from django.db import connection


def refuse_rows(table: str, condition: str, name: str = "refuse") -> None:
    """Make the database refuse each UPDATE of ``table`` whose new row meets the condition on NEW."""
    execute(*_CREATE[connection.vendor](table, condition, name))


def allow_rows(table: str, name: str = "refuse") -> None:
    """Drop the trigger of that name that ``refuse_rows`` created, if there is one."""
    on_table = f" ON {table}" if connection.vendor == "postgresql" else ""
    execute(f"DROP TRIGGER IF EXISTS {name}{on_table}")


def execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


_CREATE = {
    "postgresql": lambda table, condition, name: [
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN"
        " RAISE EXCEPTION 'not this row'; END IF; RETURN NEW; END $$",
        f"CREATE TRIGGER {name} BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
    ],
    "mysql": lambda table, condition, name: [
        f"CREATE TRIGGER {name} BEFORE UPDATE ON {table} FOR EACH ROW IF {condition} THEN"  # noqa: S608
        " SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this row'; END IF"
    ],
    "sqlite": lambda table, condition, name: [
        f"CREATE TRIGGER {name} BEFORE UPDATE ON {table} WHEN {condition}"
        " BEGIN SELECT RAISE(ABORT, 'not this row'); END"
    ],
}
