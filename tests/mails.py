"""Settings of mail, spelt as the installed Django wants them."""

import django

# Since Django 6.0, ADMINS are addresses; before, pairs.
ADMINS = ["ann@example.com"] if django.VERSION >= (6, 0) else [("Ann", "ann@example.com")]


def mails_to_files(folder) -> dict:
    """Return the settings with which each mail becomes a file in ``folder``."""
    backend = "django.core.mail.backends.filebased.EmailBackend"
    if django.VERSION >= (6, 1):
        return {"MAILERS": {"default": {"BACKEND": backend, "OPTIONS": {"file_path": str(folder)}}}}
    return {"EMAIL_BACKEND": backend, "EMAIL_FILE_PATH": str(folder)}
