-- What every operation shares: the clock, the wire's shapes, the key check, the one lock order, the replay book.
--
-- Functions in the language sql are those that Postgres can put into the calling query (which needs the volatility to be
-- honest: jsonb_build_object is STABLE). Whatever it cannot is plpgsql, whose plans are kept.
-- Each statement costs its start-up once a transaction, whatever it does. So the operations that every call needs take
-- locked ledgers as an array, reckon on these copies and write what changes with one update; `x := f()` starts no
-- statement where `PERFORM f()` and `SELECT … INTO x FROM f()` do. A row is read as one value, `x := (SELECT r FROM …)`:
-- `SELECT * INTO x` looks the type of each column up, three times over, whenever it starts.
-- Ledgers are found by scope: `tenant_id + 0` cannot go by the tenant's own index, which leads to one ledger for each of
-- its members and keys. Which of the two a planner likes better depends on what it knows of all tenants together.
-- What reads rows that were just waited for is VOLATILE: a STABLE function would see the snapshot from before the wait.
--
-- Lock order, everywhere: (advisory lock of the tenant) -> reservations by id -> ledgers by scope, unit.
-- A function that takes them otherwise can deadlock with every other one.

CREATE OR REPLACE FUNCTION now_ms() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint
$$;

CREATE OR REPLACE FUNCTION amount(p_unit text, p_amount bigint) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('unit', p_unit, 'amount', p_amount)
$$;

CREATE OR REPLACE FUNCTION instant(p_at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT replace(to_char(p_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), '.000Z', 'Z')
$$;

-- Ledgers as the runtime plane shows them. No status and nothing that is zero by nature: the client refuses unknown keys.
-- Written as text and parsed once: built of jsonb pieces it took a quarter of a reserve. And in one expression, for each
-- is made ready anew in each transaction.
CREATE OR REPLACE FUNCTION balances_of(p_ledgers ledger[]) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    l ledger;
    written text;
BEGIN
    FOREACH l IN ARRAY coalesce(p_ledgers, '{}') LOOP
        written := concat(written || ',', format(
            '{"scope":%2$s,"scope_path":%3$s,"remaining":{"unit":"%1$s","amount":%4$s},'
            '"reserved":{"unit":"%1$s","amount":%5$s},"spent":{"unit":"%1$s","amount":%6$s},'
            '"allocated":{"unit":"%1$s","amount":%7$s}',
            l.unit, to_json(split_part(l.scope, '/', -1)), to_json(l.scope), l.remaining, l.reserved, l.spent,
            l.allocated),
            CASE WHEN l.debt > 0 THEN format(',"debt":{"unit":"%s","amount":%s}', l.unit, l.debt) END,
            CASE WHEN l.overdraft_limit > 0
                THEN format(',"overdraft_limit":{"unit":"%s","amount":%s}', l.unit, l.overdraft_limit) END,
            CASE WHEN l.is_over_limit THEN ',"is_over_limit":true}' ELSE '}' END);
    END LOOP;
    RETURN concat('[', written, ']')::jsonb;
END
$$;

-- A ledger as the admin plane shows it.
CREATE OR REPLACE FUNCTION ledger_json(l ledger) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'ledger_id', l.ledger_id, 'tenant_id', (SELECT t.tenant_id FROM tenant t WHERE t.id = l.tenant_id),
        'scope', l.scope, 'unit', l.unit, 'status', l.status,
        'allocated', amount(l.unit, l.allocated), 'remaining', amount(l.unit, l.remaining),
        'reserved', amount(l.unit, l.reserved), 'spent', amount(l.unit, l.spent), 'debt', amount(l.unit, l.debt),
        'overdraft_limit', amount(l.unit, l.overdraft_limit), 'is_over_limit', l.is_over_limit,
        'created_at', instant(l.created_at))
    || jsonb_strip_nulls(jsonb_build_object(
        'commit_overage_policy', l.commit_overage_policy, 'rollover_policy', l.rollover_policy,
        'period_start', instant(l.period_start), 'period_end', instant(l.period_end),
        'updated_at', instant(l.updated_at)))
$$;

-- A refusal's body: the code, and what its sentence needs. Python writes the sentence.
CREATE OR REPLACE FUNCTION refusal(p_error text, p_scope text DEFAULT NULL) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object('error', p_error, 'scope', p_scope))
$$;

-- Whose key is it, and why not? One row if the prefix is known. `reason` is null when the key may act.
CREATE OR REPLACE FUNCTION caller_of(p_prefix text, p_digest bytea)
RETURNS TABLE (reason text, id bigint, tenant_id text, default_policy text, default_ttl_ms bigint,
               max_ttl_ms bigint, max_extensions bigint, key_id text)
LANGUAGE sql STABLE AS $$
    SELECT CASE
               WHEN k.status = 'REVOKED' THEN 'KEY_REVOKED'
               WHEN k.expires_at < statement_timestamp() THEN 'KEY_EXPIRED'
               WHEN k.digest <> p_digest THEN 'INVALID_KEY'
               WHEN t.status = 'SUSPENDED' THEN 'TENANT_SUSPENDED'
               WHEN t.status = 'CLOSED' THEN 'TENANT_CLOSED'
           END,
           t.id, t.tenant_id, t.default_commit_overage_policy, t.default_reservation_ttl_ms,
           t.max_reservation_ttl_ms, t.max_reservation_extensions, k.key_id
    FROM api_key k JOIN tenant t ON t.id = k.tenant_id
    WHERE k.prefix = p_prefix
$$;

-- Only the key check, for requests that are refused before any operation starts.
CREATE OR REPLACE FUNCTION authenticate(
    p_prefix text, p_digest bytea, OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    caller record;
BEGIN
    SELECT * INTO caller FROM caller_of(p_prefix, p_digest);
    IF NOT FOUND OR caller.reason IS NOT NULL THEN
        answer_status := 401;
        answer_body := refusal(coalesce(caller.reason, 'KEY_NOT_FOUND'));
        RETURN;
    END IF;
    answer_status := 200;
    answer_tenant := caller.tenant_id;
    answer_body := '{}';
END
$$;

CREATE OR REPLACE FUNCTION tenant_lock(p_tenant bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT hashtextextended('billing.authority.tenant', p_tenant)
$$;

-- The ledgers of these scopes, locked root first; null if there are none.
CREATE OR REPLACE FUNCTION lock_ledgers(p_tenant bigint, p_scopes text[], p_unit text) RETURNS ledger[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN nullif(ARRAY(
        SELECT l FROM ledger l
        WHERE l.scope = ANY (p_scopes) AND l.unit = p_unit AND l.tenant_id + 0 = p_tenant
        ORDER BY l.scope FOR NO KEY UPDATE
    ), '{}');
END
$$;

CREATE OR REPLACE FUNCTION read_ledgers(p_tenant bigint, p_scopes text[], p_unit text) RETURNS ledger[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT array_agg(l ORDER BY l.scope) FROM ledger l
            WHERE l.scope = ANY (p_scopes) AND l.unit = p_unit AND l.tenant_id + 0 = p_tenant);
END
$$;

-- No ledger in this unit: is there one in another (a mistake of the caller) or none at all?
CREATE OR REPLACE FUNCTION missing_ledger(p_tenant bigint, p_scopes text[], p_unit text)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    other record;
BEGIN
    SELECT l.scope, array_agg(l.unit ORDER BY
               array_position(ARRAY['USD_MICROCENTS', 'TOKENS', 'CREDITS', 'RISK_POINTS'], l.unit)) AS units
    INTO other
    FROM ledger l WHERE l.scope = ANY (p_scopes) AND l.tenant_id + 0 = p_tenant
    GROUP BY l.scope ORDER BY l.scope LIMIT 1;
    IF NOT FOUND THEN
        RETURN refusal('NOT_FOUND', p_scopes[cardinality(p_scopes)]) || '{"what": "budget"}';
    END IF;
    RETURN refusal('UNIT_MISMATCH', other.scope) || jsonb_build_object('details', jsonb_build_object(
        'scope', other.scope, 'requested_unit', p_unit, 'expected_units', to_jsonb(other.units)));
END
$$;

-- The first reason, from the root down, why this amount cannot be held; both null if it can.
CREATE OR REPLACE FUNCTION obstacle(p_ledgers ledger[], p_amount bigint, OUT code text, OUT scope text)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    l ledger;
BEGIN
    FOREACH l IN ARRAY p_ledgers LOOP
        code := CASE
            WHEN l.status = 'FROZEN' THEN 'BUDGET_FROZEN'
            WHEN l.status = 'CLOSED' THEN 'BUDGET_CLOSED'
            WHEN l.is_over_limit THEN 'OVERDRAFT_LIMIT_EXCEEDED'
            WHEN l.debt > 0 AND l.overdraft_limit = 0 THEN 'DEBT_OUTSTANDING'
            WHEN l.remaining < p_amount THEN 'BUDGET_EXCEEDED'
        END;
        IF code IS NOT NULL THEN
            scope := l.scope;
            RETURN;
        END IF;
    END LOOP;
END
$$;

-- Copies of ledgers after a change of what is held and spent, their ids and scopes; `drained`: one comes to exactly 0.
CREATE OR REPLACE FUNCTION moved(
    p_ledgers ledger[], p_reserved bigint, p_spent bigint,
    OUT after ledger[], OUT ids bigint[], OUT scopes text[], OUT drained boolean)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    l ledger;
BEGIN
    drained := false;
    FOR i IN 1 .. cardinality(p_ledgers) LOOP
        l := p_ledgers[i];
        l.reserved := l.reserved + p_reserved;
        l.spent := l.spent + p_spent;
        l.remaining := l.remaining - p_reserved - p_spent;
        drained := drained OR (l.remaining = 0 AND p_reserved + p_spent <> 0);
        after[i] := l;
        ids[i] := l.id;
        scopes[i] := l.scope;
    END LOOP;
END
$$;

-- A new reservation's id: UUID version 7, the moment first: new ones stand side by side in the index. By chance alone
-- each would dirty a page of it of its own, once there are millions.
CREATE OR REPLACE FUNCTION new_id(p_moment bigint) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT overlay(overlay(gen_random_uuid()::text PLACING lpad(to_hex(p_moment >> 16), 8, '0') FROM 1)
        PLACING lpad(to_hex(p_moment & 65535), 4, '0') || '-7' FROM 10)::uuid
$$;

-- ALLOW, or ALLOW_WITH_CAPS when the leaf scope's own ledger has caps.
CREATE OR REPLACE FUNCTION allowance(p_ledgers ledger[], p_scopes text[]) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    leaf ledger := p_ledgers[cardinality(p_ledgers)];
BEGIN
    IF leaf.scope = p_scopes[cardinality(p_scopes)] AND leaf.caps IS NOT NULL THEN
        RETURN jsonb_build_object('decision', 'ALLOW_WITH_CAPS', 'affected_scopes', p_scopes, 'caps', leaf.caps);
    END IF;
    RETURN jsonb_build_object('decision', 'ALLOW', 'affected_scopes', p_scopes);
END
$$;

-- Was this key used before? Null: no. Otherwise the answer given then, or a refusal if the request was another.
CREATE OR REPLACE FUNCTION recall(p_tenant bigint, p_operation text, p_key text, p_digest bytea)
RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT CASE WHEN r.digest = p_digest THEN r.body ELSE refusal('IDEMPOTENCY_MISMATCH') END
        FROM replay r
        WHERE r.tenant_id = p_tenant AND r.operation = p_operation AND r.key = p_key AND r.expires_at_ms > now_ms());
END
$$;

-- Write the finished answer down, or return false: the key is in the book already. Whoever else writes this key at the
-- same moment waits here for the end of this transaction.
CREATE OR REPLACE FUNCTION remembered(
    p_tenant bigint, p_operation text, p_key text, p_digest bytea, p_body jsonb, p_expires_at_ms bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO replay (tenant_id, operation, key, digest, body, expires_at_ms)
    VALUES (p_tenant, p_operation, p_key, p_digest, p_body, p_expires_at_ms)
    ON CONFLICT (tenant_id, operation, key) DO UPDATE
        SET digest = excluded.digest, body = excluded.body, expires_at_ms = excluded.expires_at_ms
        WHERE replay.expires_at_ms <= now_ms();  -- a key past its window that is not yet swept
    RETURN FOUND;
END
$$;

-- Write the finished answer down. Whoever comes second fails with unique_violation, loses its whole transaction,
-- and finds this row when its caller tries again.
CREATE OR REPLACE FUNCTION remember(
    p_tenant bigint, p_operation text, p_key text, p_digest bytea, p_body jsonb, p_expires_at_ms bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT remembered(p_tenant, p_operation, p_key, p_digest, p_body, p_expires_at_ms) THEN
        RAISE unique_violation USING MESSAGE = 'idempotency key taken meanwhile';
    END IF;
    RETURN true;
END
$$;

-- Write back copies of locked ledgers.
CREATE OR REPLACE FUNCTION write_ledgers(p_ledgers ledger[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger AS l
    SET reserved = c.reserved, spent = c.spent, debt = c.debt, is_over_limit = c.is_over_limit
    FROM unnest(p_ledgers) AS c WHERE l.id = c.id;
    RETURN true;
END
$$;

-- Book an actual amount against locked ledgers, giving back the estimate held for it (0 for an event).
-- `code` is set, and nothing changed, if the overage policy refuses.
-- `notable` says that a ledger ran out, went over its limit or into debt: the caller then tells, see emit_movements.
CREATE OR REPLACE FUNCTION charge(
    p_ledgers ledger[], p_estimate bigint, p_actual bigint, p_policy text,
    OUT code text, OUT charged bigint, OUT balances jsonb, OUT notable boolean)
LANGUAGE plpgsql AS $$
DECLARE
    delta bigint := p_actual - p_estimate;
    extra bigint := delta;  -- what is charged beyond the estimate; below zero when less was used
    l ledger;
    may_owe boolean;
    owed bigint := 0;
    short boolean;
    ids bigint[];
    alike boolean := true;  -- each ledger changes by the same, and in nothing but what is held and spent
BEGIN
    IF delta > 0 THEN
        -- A ledger caps the extra at what it has left, unless it may go into debt for it.
        FOREACH l IN ARRAY p_ledgers LOOP
            IF NOT (p_policy = 'ALLOW_WITH_OVERDRAFT' AND l.overdraft_limit > 0) THEN
                extra := least(extra, greatest(l.remaining, 0));
            END IF;
        END LOOP;
        FOREACH l IN ARRAY p_ledgers LOOP
            IF p_policy = 'ALLOW_WITH_OVERDRAFT' AND l.overdraft_limit > 0 AND l.remaining < extra
               AND l.debt::numeric + extra - greatest(l.remaining, 0) > l.overdraft_limit THEN
                code := 'OVERDRAFT_LIMIT_EXCEEDED';
                RETURN;
            END IF;
        END LOOP;
    END IF;
    charged := p_estimate + extra;
    notable := false;
    FOR i IN 1 .. cardinality(p_ledgers) LOOP
        l := p_ledgers[i];
        IF delta > 0 THEN  -- without an extra nothing is owed, short or comes to 0
            may_owe := p_policy = 'ALLOW_WITH_OVERDRAFT' AND l.overdraft_limit > 0;
            owed := CASE WHEN may_owe THEN greatest(extra - greatest(l.remaining, 0), 0) ELSE 0 END;
            short := NOT may_owe AND extra < delta AND l.remaining < delta;
            notable := notable OR owed > 0 OR (short AND NOT l.is_over_limit)
                OR (l.remaining = extra AND l.remaining > 0);
            alike := alike AND owed = 0 AND NOT short;
            l.debt := l.debt + owed;
            l.is_over_limit := l.is_over_limit OR short;
        END IF;
        l.reserved := l.reserved - p_estimate;
        l.spent := l.spent + (charged - owed);
        l.remaining := l.remaining - extra;
        p_ledgers[i] := l;
        ids[i] := l.id;
    END LOOP;
    IF alike THEN
        UPDATE ledger SET reserved = reserved - p_estimate, spent = spent + charged WHERE id = ANY (ids);
    ELSE
        PERFORM write_ledgers(p_ledgers);
    END IF;
    balances := balances_of(p_ledgers);
END
$$;
