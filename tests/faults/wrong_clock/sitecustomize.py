"""Imported by every Python that has this folder on its path: its clock is QUEUETOPIA_TEST_CLOCK seconds off."""

import datetime
import os
import time

_offset = float(os.environ.get("QUEUETOPIA_TEST_CLOCK", "0"))
_time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime


class _Instances(type):
    def __instancecheck__(cls, instance):
        return isinstance(instance, _datetime)


class _WrongDatetime(_datetime, metaclass=_Instances):
    @classmethod
    def now(cls, tz=None):
        return _datetime.now(tz) + datetime.timedelta(seconds=_offset)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls):
        return cls.now()


time.time = lambda: _time() + _offset
time.time_ns = lambda: _time_ns() + int(_offset * 1e9)
datetime.datetime = _WrongDatetime
