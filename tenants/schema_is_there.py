"""Whether a workspace's schema is there, as an SQL condition on `%(schema)s`. Owns its text, and imports nothing."""

# The table of keys stands for the schema: one that is still empty has no members. Asked for its name alone it would be
# an error where the role may not use the schema.
SCHEMA_IS_THERE = """CASE
    WHEN has_schema_privilege(to_regnamespace(quote_ident(%(schema)s::text))::oid, 'USAGE')
    THEN to_regclass(quote_ident(%(schema)s::text) || '.users_apikey') IS NOT NULL ELSE false END"""
