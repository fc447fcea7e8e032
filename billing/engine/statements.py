"""Every statement of the engine, in one file; a test holds them to the models.

Owns their texts. Names are schema-qualified, for the connection has no search path; a tenant's schema stands in the
text, as its name is checked where it is made and again in `in_schema`.
"""

from __future__ import annotations

import functools
import re

from tenants.schema_is_there import SCHEMA_IS_THERE

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")


# A call asks for the same texts again and again, and a connection finds one that is the same object at once.
@functools.lru_cache(maxsize=1_024)
def in_schema(statement: str, schema: str) -> str:
    """`statement` for one tenant: `{schema}` stands for its schema."""
    if not _SCHEMA.fullmatch(schema):
        raise ValueError("not the name of a tenant's schema")
    return statement.replace("{schema}", f'"{schema}"')


# As a value, for whoever reads more of the tenant in the same statement. With the end of the period that is open, and
# the models that the workspace may call.
ACCOUNT_OF_TENANT = """(
    SELECT json_build_array(
        account.id, account.status, plan, subject_tenant, sealed_key, allowance_granted_at IS NULL,
        (SELECT ends_at FROM public.billing_budgetperiod
         WHERE account_id = account.id AND opened_at IS NOT NULL AND closed_at IS NULL),
        tenant.allowed_models::json
    )
    FROM public.billing_account AS account JOIN public.tenants_tenant AS tenant ON tenant.id = account.tenant_id
    WHERE account.tenant_id = %s
)"""

ACCOUNT = f"SELECT {ACCOUNT_OF_TENANT}"

# With the key that asks, as billing.subjects.Key has it.
ACCOUNT_AND_KEY = """
SELECT {account}, (
    SELECT json_build_array(coalesce(spends_as, id), limited_apps, allowed_models, rates)
    FROM {schema}.users_apikey WHERE id = %s
)""".replace("{account}", ACCOUNT_OF_TENANT)

# Scopes are written in lower case, so that is how two tenants of the authority are the same.
A_CUSTOMER = "SELECT 1 FROM public.billing_account WHERE lower(subject_tenant) = lower(%s) LIMIT 1"

REGISTER = """
INSERT INTO public.billing_process (id, kind, started_at, seen_at) VALUES (%s, %s, now(), now())
ON CONFLICT (id) DO UPDATE SET seen_at = now()
"""

TELL = "SELECT pg_notify(%s, %s)"

FORGET_PROCESS = "DELETE FROM public.billing_process WHERE id = %s"

_HOLD_ROW = """
INSERT INTO public.billing_hold (
    id, account_id, process, reservation_id, subject, user_id, action_kind, action_name, model, estimate, slices,
    busy_key, created_at, dispatched_at, used, overrun, tokens_input, outcome, is_final
)
SELECT
    %(id)s, %(account)s, %(process)s, %(reservation)s, %(subject)s::jsonb, %(user)s, %(kind)s, %(name)s, %(model)s,
    %(estimate)s, '[]'::jsonb, %(busy_key)s{number}, now(), now(), %(used)s, 0, %(tokens_input)s, 'swept', false
"""

# Whose workspace's schema is gone buys nothing: its line could not be written. The row that says that it is there may
# have been kept since before somebody dropped it. The house's is public.
DISPATCH = f"{_HOLD_ROW}WHERE {SCHEMA_IS_THERE}\nRETURNING busy_key, {{numbers}} AS numbers\n"

# The same for a key with rates, which counts the call first: no row where the key is full, and what is left of its
# rates in either case. The key's row stays locked until this statement has committed.
_COUNT = """public.billing_count_call(
    %(account)s, %(rated_key)s, %(most_requests)s, %(most_tokens)s, %(most_concurrent)s, %(wanted)s, %(is_let_in)s
)"""
_RATED_ROW = _HOLD_ROW.replace("tokens_input, outcome", "tokens_input, rated_key, outcome").replace(
    "%(tokens_input)s, 'swept'", "%(tokens_input)s, %(rated_key)s, 'swept'"
)
_COUNTED = """
), held AS ({row}FROM counted WHERE "full" IS NULL RETURNING busy_key, {numbers} AS numbers)
SELECT busy_key, numbers, counted.* FROM counted LEFT JOIN held ON true
""".replace("{row}", _RATED_ROW)

DISPATCH_COUNTED = (
    """
WITH counted AS (
    SELECT * FROM {count} WHERE {there}{counted}""".replace("{count}", _COUNT)
    .replace("{there}", SCHEMA_IS_THERE)
    .replace("{counted}", _COUNTED)
)

# A process that was stopped may wake when another has taken its claim over: then no hold is written, and it calls no
# model. One statement, so that nobody can take the claim between the two.
DISPATCH_CLAIMED = """
WITH claim AS (
    UPDATE {schema}.usage_repeat SET hold = %(id)s
    WHERE id = %(claim)s AND attempt = %(attempt)s AND hold IS NULL
    RETURNING id
){row}FROM claim
RETURNING busy_key, {numbers} AS numbers
""".replace("{row}", _HOLD_ROW)

# Where the key is full the claim names a hold that never was; whoever repeats the request may take it over.
DISPATCH_CLAIMED_COUNTED = """
WITH claim AS (
    UPDATE {schema}.usage_repeat SET hold = %(id)s
    WHERE id = %(claim)s AND attempt = %(attempt)s AND hold IS NULL
    RETURNING id
), counted AS (
    SELECT found.* FROM claim, LATERAL {count} AS found{counted}""".replace("{count}", _COUNT).replace(
    "{counted}", _COUNTED
)


@functools.lru_cache(maxsize=256)
def dispatch_statement(
    numbered_by: str = "", numbers: str = "", *, is_claimed: bool = False, is_counted: bool = False
) -> str:
    """The hold's row, its busy key ended by an SQL expression where there is one; `numbers` is one whose value comes
    back; `is_claimed`: while the claim is; `is_counted`: while its key has room.
    """
    if is_counted:
        text = DISPATCH_CLAIMED_COUNTED if is_claimed else DISPATCH_COUNTED
    else:
        text = DISPATCH_CLAIMED if is_claimed else DISPATCH
    text = text.replace("{number}", f"::text || ({numbered_by})" if numbered_by else "")
    return text.replace("{numbers}", numbers or "NULL")


FORGET_HOLD = "DELETE FROM public.billing_hold WHERE id = %s"

# Before the slice is reserved, so that a crash in between leaves a name to ask for.
SLICE = """
UPDATE public.billing_hold
SET slices = %(slices)s::jsonb, used = %(used)s, tokens_input = %(tokens_input)s, tokens_output = %(tokens_output)s
WHERE id = %(id)s RETURNING id
"""

# What the call used is decided, but the authority has not taken it yet: whoever repeats it sends the same. `gone` is
# named as in SETTLE, so that what becomes of an Idempotency-Key can be written with either.
FINAL = """
WITH gone AS (
    UPDATE public.billing_hold
    SET used = %(used)s, overrun = %(overrun)s, model = %(model)s, tokens_input = %(tokens_input)s,
        tokens_output = %(tokens_output)s, tokens_cached = %(tokens_cached)s, tokens_reasoning = %(tokens_reasoning)s,
        outcome = %(outcome)s, slices = %(slices)s::jsonb, is_final = true
    WHERE id = %(id)s RETURNING id
){keep}
SELECT id FROM gone
"""

# The line in and the hold out, or neither. Whoever deletes the row writes the line; nobody else does.
SETTLE = """
WITH gone AS (
    DELETE FROM public.billing_hold WHERE id = %(id)s{first}
    RETURNING id, reservation_id, user_id, subject, action_name, created_at
), line AS (
    INSERT INTO {schema}.usage_usageline (
        hold, reservation_id, user_id, key_id, app, action, model, tokens_input, tokens_output, tokens_cached,
        tokens_reasoning, estimate, cost, overrun, outcome, created_at, settled_at
    )
    SELECT id, reservation_id, user_id, substring(subject->>'agent' from '^key-([0-9]{1,18})$')::bigint,
           coalesce(subject->>'app', ''), action_name, %(model)s, %(tokens_input)s,
           %(tokens_output)s, %(tokens_cached)s, %(tokens_reasoning)s, %(held)s, %(cost)s, %(overrun)s, %(outcome)s,
           created_at, now()
    FROM gone
){keep}
SELECT id FROM gone
"""

# The same for a call that the house paid for: the operator's line, in no tenant's schema.
SETTLE_HOUSE = SETTLE.replace("{schema}.usage_usageline", "public.billing_houseline")


@functools.lru_cache(maxsize=256)
def settle_statement(keep: str = "", first: str = "", *, is_house: bool = False) -> str:
    """SETTLE with further parts, and a further condition of the hold's."""
    settle = SETTLE_HOUSE if is_house else SETTLE
    return settle.replace("{keep}", keep).replace("{first}", first)


# Further condition of SETTLE, where more or fewer tokens were used than were counted for a key with rates. Always true.
TOKENS_CORRECTED = " AND public.billing_correct_tokens(account_id, rated_key, %(most_tokens)s, %(tokens_more)s)"

# What the newest reports say of each model, from all processes.
LEARN = """
INSERT INTO public.billing_habit AS habit (model, app, samples) VALUES (%(model)s, %(app)s, %(samples)s::jsonb)
ON CONFLICT (model, app) DO UPDATE SET samples = (
    SELECT coalesce(jsonb_agg(sample ORDER BY place), '[]'::jsonb)
    FROM (
        SELECT sample, place
        FROM jsonb_array_elements(EXCLUDED.samples || habit.samples) WITH ORDINALITY AS all_of (sample, place)
        ORDER BY place LIMIT %(kept)s
    ) AS newest
)
"""

HABITS = "SELECT model, app, samples FROM public.billing_habit"

# Holds whose process has been silent for so many seconds, or is not known at all, with what is needed to settle them.
# Those without an account are the house's, and taken only where it still is the same: under another key they could not
# be settled, and would keep the tenants' from their turn; as would `later`, those that are not to be tried again yet.
ABANDONED = """
SELECT hold.id, hold.reservation_id, hold.subject, hold.action_kind, hold.action_name, hold.model, hold.estimate,
       hold.slices, hold.used, hold.overrun, hold.tokens_input, hold.tokens_output, hold.tokens_cached,
       hold.tokens_reasoning, hold.outcome, hold.is_final, hold.created_at,
       hold.account_id, account.subject_tenant, account.plan, account.sealed_key,
       tenant.id, tenant.slug, tenant.schema_name
FROM public.billing_hold AS hold
LEFT JOIN public.billing_account AS account ON account.id = hold.account_id
LEFT JOIN public.tenants_tenant AS tenant ON tenant.id = account.tenant_id
WHERE CASE WHEN hold.account_id IS NULL THEN hold.subject->>'tenant' = %(house)s ELSE tenant.id IS NOT NULL END
AND hold.id <> ALL(%(later)s::uuid[])
AND NOT EXISTS (
    SELECT 1 FROM public.billing_process AS process
    WHERE process.id = hold.process AND process.seen_at > now() - make_interval(secs => %(silent)s)
)
ORDER BY hold.created_at
LIMIT %(most)s
"""

# Long dead, and nothing of theirs is left to settle.
FORGET_THE_DEAD = """
DELETE FROM public.billing_process AS process
WHERE seen_at < now() - interval '1 hour'
  AND NOT EXISTS (SELECT 1 FROM public.billing_hold AS hold WHERE hold.process = process.id)
"""

# By then every bucket has drained.
FORGET_RATES = "DELETE FROM public.billing_keyrate WHERE greatest(requests_at, tokens_at) < now() - interval '1 hour'"

# --- requests under an Idempotency-Key ---

# Ours where there is no such request yet, or none of the last day. It has no answer and no hold then.
CLAIM = """
INSERT INTO {schema}.usage_repeat AS repeat (user_id, route, key, fingerprint, attempt, process, answer, created_at)
VALUES (%(user)s, %(route)s, %(key)s, %(fingerprint)s, %(attempt)s, %(process)s, '', now())
ON CONFLICT (user_id, route, key) DO UPDATE
SET fingerprint = EXCLUDED.fingerprint, attempt = EXCLUDED.attempt, process = EXCLUDED.process, hold = NULL,
    status = NULL, answer = '', created_at = now()
WHERE repeat.created_at < now() - make_interval(secs => %(kept)s)
RETURNING id
"""

# What has become of it. A hold's row goes in the statement that writes its line; one that went without a line was
# never dispatched. A line of what came to nothing counts as none: a process that died after it gave the money back
# could not give the key back, too.
LOOK = """
SELECT repeat.id, repeat.fingerprint, repeat.attempt, repeat.status, repeat.answer, repeat.hold,
       repeat.created_at < now() - make_interval(secs => %(stale)s),
       EXISTS (
           SELECT 1 FROM public.billing_process AS process
           WHERE process.id = repeat.process AND process.seen_at > now() - make_interval(secs => %(silent)s)
       ),
       EXISTS (SELECT 1 FROM public.billing_hold AS hold WHERE hold.id = repeat.hold),
       (SELECT line.cost FROM {schema}.usage_usageline AS line WHERE line.hold = repeat.hold AND line.outcome <> 'none')
FROM {schema}.usage_repeat AS repeat
WHERE repeat.user_id = %(user)s AND repeat.route = %(route)s AND repeat.key = %(key)s
"""

# By compare and set: of many who want it one gets it, and nobody where its owner has dispatched meanwhile.
TAKE_OVER = """
UPDATE {schema}.usage_repeat SET attempt = %(attempt)s, process = %(process)s, hold = NULL, created_at = now()
WHERE id = %(id)s AND attempt = %(seen)s AND hold IS NOT DISTINCT FROM %(hold)s AND status IS NULL
RETURNING id
"""

GIVE_BACK = """
DELETE FROM {schema}.usage_repeat
WHERE user_id = %(user)s AND route = %(route)s AND key = %(key)s AND attempt = %(attempt)s AND status IS NULL
"""

# Further parts of SETTLE, and of FINAL where the authority is away: with the outcome comes the answer, or the key is
# free again.
ANSWERED = """
, answered AS (
    UPDATE {schema}.usage_repeat AS repeat SET status = %(told_status)s, answer = %(told)s
    FROM gone WHERE repeat.id = %(claim)s AND repeat.attempt = %(attempt)s AND repeat.status IS NULL
)"""

# The call came to nothing, and its process makes another for the same request: as if it had just been claimed.
CALLED_AGAIN = """
, called_again AS (
    UPDATE {schema}.usage_repeat AS repeat SET hold = NULL, created_at = now()
    FROM gone WHERE repeat.id = %(claim)s AND repeat.attempt = %(attempt)s AND repeat.hold = gone.id
      AND repeat.status IS NULL
)"""

GIVEN_BACK = """
, given_back AS (
    DELETE FROM {schema}.usage_repeat AS repeat USING gone
    WHERE repeat.id = %(claim)s AND repeat.attempt = %(attempt)s AND repeat.status IS NULL
)"""
