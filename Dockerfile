# The example project, for compose.yaml. Not for production: docs/guides/production.md has an image for that.
FROM python:3.13-slim
WORKDIR /srv
COPY pyproject.toml README.md LICENSE manage.py ./
COPY queuetopia queuetopia
COPY example_project example_project
RUN pip install --no-cache-dir -e '.[example]'
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
CMD ["python", "manage.py", "run_queuetopia"]
