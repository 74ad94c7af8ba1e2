from django.db import migrations

from queuetopia.backends.columns import AlterOnMySQL, WideCharField, WideTextField


class Migration(migrations.Migration):
    dependencies = [("queuetopia", "0004_census")]

    operations = [
        AlterOnMySQL("job", "attempted_by", WideCharField("attempted by", max_length=255, default="")),
        AlterOnMySQL("job", "error", WideTextField("last error", default="")),
        AlterOnMySQL("queue", "problem", WideCharField("problem", max_length=500, db_default="")),
        AlterOnMySQL("queue", "paused_by", WideCharField("paused by", max_length=255, db_default="")),
        AlterOnMySQL("queue", "paused_reason", WideCharField("reason", max_length=500, db_default="")),
        AlterOnMySQL("scope", "paused_by", WideCharField("paused by", max_length=255, default="")),
        AlterOnMySQL("scope", "paused_reason", WideCharField("reason", max_length=500, default="")),
        AlterOnMySQL("jobevent", "by", WideCharField("by", max_length=255, default="")),
        AlterOnMySQL("jobevent", "reason", WideCharField("reason", max_length=500, default="")),
    ]
