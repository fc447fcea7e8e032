-- What the superuser who runs this made in this database is handed to app_owner: an earlier version did everything as
-- one role. Finds nothing in a new database, and may be run again. REASSIGN OWNED refuses the superuser of a cluster,
-- because Postgres itself belongs to it.
DO $$
DECLARE
    command text;
BEGIN
    FOR command IN
        WITH ours AS (
            SELECT oid, nspname, nspowner FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
        ), of_extensions AS (
            SELECT objid, classid FROM pg_depend WHERE deptype = 'e'
        )
        SELECT format('ALTER SCHEMA %I OWNER TO app_owner', nspname)
        FROM ours WHERE nspowner = current_user::regrole
        UNION ALL
        -- Indexes follow their table, and so do the sequences of its columns and the type of its rows.
        SELECT format(
            'ALTER %s %s OWNER TO app_owner',
            CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                         WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END,
            c.oid::regclass
        )
        FROM pg_class AS c JOIN ours ON ours.oid = c.relnamespace
        WHERE relowner = current_user::regrole AND relkind IN ('r', 'p', 'v', 'm', 'S', 'c')
        AND NOT EXISTS (SELECT FROM of_extensions WHERE objid = c.oid AND classid = 'pg_class'::regclass)
        AND NOT (relkind = 'S' AND EXISTS (
            SELECT FROM pg_depend WHERE objid = c.oid AND classid = 'pg_class'::regclass
            AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')
        ))
        UNION ALL
        SELECT format('ALTER ROUTINE %s OWNER TO app_owner', p.oid::regprocedure)
        FROM pg_proc AS p JOIN ours ON ours.oid = p.pronamespace
        WHERE proowner = current_user::regrole
        AND NOT EXISTS (SELECT FROM of_extensions WHERE objid = p.oid AND classid = 'pg_proc'::regclass)
        UNION ALL
        SELECT format('ALTER TYPE %s OWNER TO app_owner', t.oid::regtype)
        FROM pg_type AS t JOIN ours ON ours.oid = t.typnamespace
        WHERE typowner = current_user::regrole AND typtype IN ('e', 'd', 'r')
        AND NOT EXISTS (SELECT FROM of_extensions WHERE objid = t.oid AND classid = 'pg_type'::regclass)
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;
