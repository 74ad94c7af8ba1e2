from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("provider", "0001_initial"),
    ]

    operations = [
        migrations.AlterField(
            model_name="provider",
            name="mode",
            field=models.CharField(
                choices=[
                    ("on", "on"),
                    ("slow", "slow"),
                    ("later", "later"),
                    ("failing", "failing"),
                    ("off", "off"),
                ],
                default="on",
                max_length=8,
            ),
        ),
    ]
