"""Sums of rows of ``Statistic``, made by the database: there may be hundreds of thousands.

A key is an action, or the beginning of a step of time in seconds since 1970.
"""

from ..models import Statistic

# The beginning of the step in which a row's time is.
_STEP = {
    "postgresql": "floor(extract(epoch FROM s.at) / {step})::bigint * {step}",
    "mysql": "TIMESTAMPDIFF(SECOND, '1970-01-01', s.at) DIV {step} * {step}",
    "sqlite": "CAST(strftime('%%s', s.at) AS INTEGER) / {step} * {step}",
}
# A histogram as rows of ``bin``, and how often one of them is counted.
_BINS = {
    "postgresql": ("jsonb_each_text(s.{name}) AS bin (number, times)", "bin.times::bigint"),
    "mysql": (
        "JSON_TABLE(JSON_KEYS(s.{name}), '$[*]' COLUMNS (number VARCHAR(16) PATH '$')) AS bin",
        "CAST(JSON_EXTRACT(s.{name}, CONCAT('$.\"', bin.number, '\"')) AS SIGNED)",
    ),
    "sqlite": ("json_each(s.{name}) AS bin", "bin.value"),
}
_NUMBER = {"postgresql": "bin.number", "mysql": "bin.number", "sqlite": "bin.key"}


def of_columns_and_bins(connection, columns, names, *, scopes, since, until, step, action=None):
    """Sum up the rows from ``since`` to ``until`` in one statement; ``step`` None: by action.

    Return [(key, sum of each column, …)] and [(name of a histogram, key, number of a bin, how many times)].
    """
    key, number = _key(connection, step), _NUMBER[connection.vendor]
    where, values = _where(connection, scopes, since, until, action)
    sums = ", ".join(f"sum(s.{column})" for column in columns)
    parts = [f"SELECT '', {key}, '', {sums} FROM {_TABLE} s {where} GROUP BY {key}"]  # noqa: S608
    unused = ", 0" * (len(columns) - 1)
    for name in names:
        bins, times = (text.format(name=name) for text in _BINS[connection.vendor])
        what = f"'{name}', {key}, {number}, coalesce(sum({times}), 0){unused}"
        parts.append(f"SELECT {what} FROM {_TABLE} s, {bins} {where} GROUP BY {key}, {number}")  # noqa: S608
    rows = _fetch(connection, " UNION ALL ".join(parts), values * len(parts))
    of_columns = [(key, *numbers) for name, key, _, *numbers in rows if not name]
    of_bins = [(name, key, int(number), int(times)) for name, key, number, times, *_ in rows if name]
    return of_columns, of_bins


_TABLE = Statistic._meta.db_table


def _key(connection, step):
    return "s.action" if step is None else _STEP[connection.vendor].format(step=int(step))


def _where(connection, scopes, since, until, action):
    adapt = connection.ops.adapt_datetimefield_value
    places = ", ".join(["%s"] * len(scopes))
    where, values = f"WHERE s.scope IN ({places}) AND s.at >= %s AND s.at < %s", [*scopes, adapt(since), adapt(until)]
    return (where, values) if action is None else (f"{where} AND s.action = %s", [*values, action])


def _fetch(connection, sql, values):
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall()
