# Web, plane, jobs and any manage.py command for production: no embedded part is started here.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --system --uid 10001 --create-home app && install -d -o app /var/lib/tenantry/journal
WORKDIR /app

# First what changes least, so that a change of code installs nothing again.
COPY requirements/run.txt requirements/run.txt
RUN pip install --no-cache-dir --require-hashes -r requirements/run.txt
COPY . .

USER app
ENV CYCLES_JOURNAL_DIR=/var/lib/tenantry/journal
EXPOSE 8000 8001
CMD ["gunicorn", "-c", "config/gunicorn.conf.py", "--bind", "0.0.0.0:8000", "config.wsgi"]
