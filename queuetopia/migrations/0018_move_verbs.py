from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("queuetopia", "0017_breaker")]

    operations = [
        migrations.AlterModelOptions(
            name="job",
            options={
                "verbose_name": "job",
                "verbose_name_plural": "jobs",
                "default_permissions": ("view", "delete"),
                "permissions": (
                    ("retry_job", "Can retry jobs"),
                    ("skip_job", "Can skip jobs"),
                    ("cancel_job", "Can cancel jobs"),
                    ("mark_done_job", "Can mark jobs as done"),
                    ("edit_job", "Can edit the params of jobs"),
                    ("move_to_end_job", "Can move jobs to the end of their queues"),
                    ("move_job", "Can move jobs to other queues"),
                    ("reschedule_job", "Can reschedule jobs"),
                    ("run_now_job", "Can make jobs scheduled for later due now"),
                    ("view_params", "Can view the params and results of jobs"),
                ),
            },
        ),
    ]
