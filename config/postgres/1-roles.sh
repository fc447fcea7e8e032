#!/bin/sh
# The two roles of the app, neither a superuser: app_owner migrates and builds workspaces, app_serving is web and plane.
# The Postgres image runs this on an empty volume. It may be run again, with other passwords, or on an older volume.
set -e

psql --set=ON_ERROR_STOP=1 --no-psqlrc --quiet --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv owner_password DATABASE_OWNER_PASSWORD
\getenv serving_password DATABASE_SERVING_PASSWORD
SELECT format('CREATE ROLE %I LOGIN', wanted) FROM unnest(ARRAY['app_owner', 'app_serving']) AS wanted
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) \gexec
ALTER ROLE app_owner PASSWORD :'owner_password';
ALTER ROLE app_serving PASSWORD :'serving_password';
SELECT format('ALTER DATABASE %I OWNER TO app_owner', current_database()) \gexec
SELECT format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO app_serving', current_database()) \gexec
SQL
