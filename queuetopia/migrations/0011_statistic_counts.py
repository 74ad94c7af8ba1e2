from django.db import migrations, models

NAMES = ("created", "started", "done", "failed", "halted", "skipped", "cancelled")


class Migration(migrations.Migration):
    dependencies = [("queuetopia", "0010_outside")]

    operations = [
        migrations.AlterField(model_name="statistic", name=name, field=models.PositiveBigIntegerField(name, default=0))
        for name in NAMES
    ]
