from django.db import models


class Note(models.Model):
    """Something a performer or a caller's transaction wrote."""

    text = models.TextField()

    def __str__(self):
        return self.text
