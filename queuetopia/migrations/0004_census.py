from django.db import migrations, models

import queuetopia.backends.columns


class Migration(migrations.Migration):
    dependencies = [("queuetopia", "0003_permissions")]

    operations = [
        migrations.AddField(
            model_name="statistic",
            name="created",
            field=models.PositiveIntegerField(default=0, verbose_name="created"),
        ),
        migrations.AddField(
            model_name="chore",
            name="marks",
            field=models.JSONField(default=dict, verbose_name="marks"),
        ),
        migrations.AddIndex(
            model_name="job",
            index=queuetopia.backends.columns.PartialIndex(
                condition=models.Q(("state__in", ["skipped", "cancelled"])),
                fallback=["state"],
                fields=["id"],
                name="queuetopia_job_given_up",
            ),
        ),
    ]
