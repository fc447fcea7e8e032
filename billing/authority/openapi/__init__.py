"""The planes' own OpenAPI documents: what may be asked and what can be answered, as data. Serves and decides nothing.

    words        how a schema, a parameter, an operation is written here
    requests     bodies: the strict models of `wire` and `admin.shapes` as JSON Schema
    shown        what answers are made of, by name; shown_admin those of the admin plane
    runtime      the runtime plane's operations
    money        the admin plane's operations on tenants, keys, budgets, policies
    trail        the admin plane's operations on events, audit rows, webhooks, and its probes
    document     the whole of it, built once by each plane when it starts

A document promises as little as it can keep: whoever adds a field, a status or a code adds it here, or the tests fail,
for they hold every recorded and every generated answer to it.
"""
