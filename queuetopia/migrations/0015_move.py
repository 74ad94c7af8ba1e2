from django.db import migrations, models

from queuetopia.backends.columns import AddPartialIndex, ExactCharField, PartialIndex, Widen


class Migration(migrations.Migration):
    dependencies = [("queuetopia", "0014_progress")]

    operations = [
        Widen(
            model_name="job",
            name="on_exhausted",
            field=ExactCharField(max_length=260, null=True, verbose_name="on exhausted"),
        ),
        AddPartialIndex(
            model_name="job",
            index=PartialIndex(
                condition=models.Q(state="halted"),
                fallback=["state"],
                fields=["scope", "queue", "scheduled_at", "id"],
                name="queuetopia_job_halted",
            ),
        ),
    ]
