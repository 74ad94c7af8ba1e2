from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("queuetopia", "0013_schedules"),
    ]

    operations = [
        migrations.AddField(
            model_name="job",
            name="progress",
            field=models.JSONField(null=True, verbose_name="progress"),
        ),
    ]
