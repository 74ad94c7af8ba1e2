"""Times: how they are shown, and the settings of Django that would store them wrong."""

from django.utils import timezone

from . import conf
from .exceptions import TimesRefused

UTC_NAMES = (None, "UTC", "Etc/UTC")  # None: Django takes UTC where the database has no time zones
WITHOUT_ZONES = (
    "cannot be used with USE_TZ = False: times without a time zone are ambiguous, and jobs would be due hours early or "
    "late",
    "Set USE_TZ = True.",
)


def local(moment) -> str:
    """Return an aware datetime in the current time zone, to the second and with its offset from UTC."""
    return timezone.localtime(moment).isoformat(sep=" ", timespec="seconds")


def local_time(moment) -> str:
    """Return the time of day of an aware datetime in the current time zone, with its offset from UTC."""
    return local(moment).partition(" ")[2]


def local_minute(moment) -> str:
    """Return the hour and minute of an aware datetime in the current time zone, with its offset from UTC."""
    return timezone.localtime(moment).isoformat(sep=" ", timespec="minutes").partition(" ")[2]


def trouble(connection) -> tuple[str, str] | None:
    """Return what is wrong with the settings of a connection, and the remedy; None if times are stored right."""
    if not conf.uses_time_zones():
        return WITHOUT_ZONES
    zone = connection.settings_dict.get("TIME_ZONE")
    if connection.features.supports_timezones or zone in UTC_NAMES:
        return None
    return (
        f"cannot be used with DATABASES[{connection.alias!r}]['TIME_ZONE'] = {zone!r}: this database stores times "
        "without a zone. Django would write them in this one, and the database's clock is in UTC",
        f"Remove TIME_ZONE from DATABASES[{connection.alias!r}]; the setting TIME_ZONE may be any.",
    )


def refuse_wrong(connection) -> None:
    """Raise TimesRefused if this connection would store times wrong."""
    if found := trouble(connection):
        raise TimesRefused(f"Database {connection.alias!r} {found[0]}. {found[1]}")
