-- The trail of the operations: events told to whoever listens, and audit rows. Written in the operation's own
-- transaction, so that a refused or lost operation leaves none.
--
-- `p_context` is what the planes know of the request: {request_id, trace_id, source_ip, user_agent}.

CREATE OR REPLACE FUNCTION short_id(p_kind text) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT p_kind || '_' || left(gen_random_uuid()::text, 16)
$$;

-- An event as it is listed and delivered.
CREATE OR REPLACE FUNCTION emitted_json(e emitted_event) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'event_id', e.event_id, 'event_type', e.event_type, 'category', e.category,
        'timestamp', to_char(e.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'tenant_id', e.tenant_id, 'scope', e.scope, 'actor', e.actor, 'source', e.source,
        'correlation_id', e.correlation_id, 'request_id', e.request_id, 'trace_id', e.trace_id))
    || jsonb_build_object('data', e.data)  -- not stripped: an unset level of a subject is null there
$$;

-- Write one event, and a delivery for each subscription that asked for it. The subscription is not locked: a paused or
-- deleted one is found out by the worker.
CREATE OR REPLACE FUNCTION emit(
    p_tenant text, p_type text, p_scope text, p_actor jsonb, p_source text, p_data jsonb, p_context jsonb,
    p_correlation text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    made emitted_event;
BEGIN
    INSERT INTO emitted_event (event_id, event_type, category, tenant_id, scope, actor, source, data,
                               correlation_id, request_id, trace_id, created_at)
    VALUES (short_id('evt'), p_type, split_part(p_type, '.', 1), p_tenant, p_scope, p_actor, p_source, p_data,
            p_correlation, p_context ->> 'request_id',
            coalesce(p_context ->> 'trace_id', replace(gen_random_uuid()::text, '-', '')), clock_timestamp())
    RETURNING * INTO made;
    INSERT INTO delivery (delivery_id, subscription_id, event_id, status, attempts, created_at, due_at,
                          trace_flags, traceparent_inbound_valid)
    SELECT short_id('del'), s.id, made.id, 'PENDING', 0, clock_timestamp(), clock_timestamp(), '01', false
    FROM subscription s
    WHERE s.tenant_id IN (p_tenant, '__system__') AND s.status = 'ACTIVE'
      AND (s.event_types ? p_type OR coalesce(s.event_categories ? made.category, false))
      AND (s.scope_filter IS NULL OR p_scope = s.scope_filter
           OR (right(s.scope_filter, 2) = '/*' AND starts_with(p_scope, left(s.scope_filter, -1))));
    RETURN made.event_id;
END
$$;

CREATE OR REPLACE FUNCTION write_audit(
    p_tenant text, p_key_id text, p_operation text, p_status int, p_resource_type text, p_resource_id text,
    p_error_code text, p_metadata jsonb, p_context jsonb)
RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO audit_entry (log_id, tenant_id, key_id, operation, status, resource_type, resource_id, error_code,
                             metadata, user_agent, source_ip, request_id, trace_id, created_at)
    VALUES (short_id('log'), p_tenant, p_key_id, p_operation, p_status, p_resource_type, p_resource_id, p_error_code,
            p_metadata, p_context ->> 'user_agent', p_context ->> 'source_ip', p_context ->> 'request_id',
            p_context ->> 'trace_id', clock_timestamp())
$$;

CREATE OR REPLACE FUNCTION key_actor(p_key_id text, p_context jsonb) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'type', 'api_key', 'key_id', p_key_id, 'source_ip', p_context ->> 'source_ip'))
$$;

CREATE OR REPLACE FUNCTION emit_denial(
    p_tenant text, p_key_id text, p_scopes text[], p_unit text, p_amount bigint, p_reason text,
    p_subject text, p_action text, p_context jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    leaf text := p_scopes[cardinality(p_scopes)];
BEGIN
    PERFORM emit(p_tenant, 'reservation.denied', leaf, key_actor(p_key_id, p_context), 'cycles-server',
        jsonb_build_object('scope', leaf, 'unit', p_unit, 'reason_code', p_reason, 'requested_amount', p_amount,
            'action', '{"tags": null}'::jsonb || storable(p_action),
            'subject', '{"tenant": null, "workspace": null, "app": null, "workflow": null, "agent": null,
                         "toolset": null, "dimensions": null}'::jsonb || storable(p_subject)), p_context);
END
$$;

-- JSON text as jsonb. The escape of U+0000, which jsonb refuses, becomes the replacement character.
CREATE OR REPLACE FUNCTION storable(p_json text) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN coalesce(p_json, '{}')::jsonb;
EXCEPTION WHEN untranslatable_character THEN
    RETURN regexp_replace(p_json, '(?<!\\)((\\\\)*)\\u0000', '\1\\ufffd', 'g')::jsonb;
END
$$;

-- What ledgers went through, told from their state before (locked by the caller) and now: ran out, went over the
-- limit, went into debt.
CREATE OR REPLACE FUNCTION emit_movements(
    p_tenant text, p_key_id text, p_before ledger[], p_reservation uuid, p_policy text, p_context jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    actor jsonb := key_actor(p_key_id, p_context);
    l record;
BEGIN
    FOR l IN
        SELECT n.*, b.remaining AS had, b.is_over_limit AS was_over, b.debt AS owed
        FROM unnest(p_before) AS b JOIN ledger n ON n.id = b.id ORDER BY n.scope
    LOOP
        IF l.remaining = 0 AND l.had > 0 THEN
            PERFORM emit(p_tenant, 'budget.exhausted', l.scope, actor, 'cycles-server', jsonb_build_object(
                'scope', l.scope, 'unit', l.unit, 'threshold', 1.0, 'utilization', CASE WHEN l.allocated = 0 THEN 1.0
                    ELSE round((l.spent + l.reserved)::numeric / l.allocated, 4) END,
                'allocated', l.allocated, 'remaining', l.remaining, 'spent', l.spent, 'reserved', l.reserved,
                'direction', 'rising'), p_context);
        END IF;
        IF l.is_over_limit AND NOT l.was_over THEN
            PERFORM emit(p_tenant, 'budget.over_limit_entered', l.scope, actor, 'cycles-server', jsonb_build_object(
                'scope', l.scope, 'unit', l.unit, 'is_over_limit', true)
                || CASE WHEN l.overdraft_limit > 0 THEN jsonb_build_object('debt', l.debt,
                    'overdraft_limit', l.overdraft_limit,
                    'debt_utilization', round(l.debt::numeric / l.overdraft_limit, 4)) ELSE '{}' END, p_context);
        END IF;
        IF l.debt > l.owed THEN
            PERFORM emit(p_tenant, 'budget.debt_incurred', l.scope, actor, 'cycles-server', jsonb_build_object(
                'scope', l.scope, 'unit', l.unit, 'debt_incurred', l.debt - l.owed, 'total_debt', l.debt,
                'overdraft_limit', l.overdraft_limit, 'overage_policy', p_policy)
                || jsonb_strip_nulls(jsonb_build_object('reservation_id', p_reservation)), p_context);
        END IF;
    END LOOP;
END
$$;

-- A commit above its estimate. `debt_incurred` is the leaf's: each ledger tells its own by itself.
CREATE OR REPLACE FUNCTION emit_overage(
    p_tenant text, p_key_id text, p_hold reservation, p_actual bigint, p_before ledger[], p_context jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    path text := p_hold.scopes[cardinality(p_hold.scopes)];
    leaf ledger := p_before[cardinality(p_before)];
BEGIN
    PERFORM emit(p_tenant, 'reservation.commit_overage', path, key_actor(p_key_id, p_context), 'cycles-server',
        jsonb_build_object('reservation_id', p_hold.id, 'scope', path, 'unit', p_hold.unit,
            'estimated_amount', p_hold.reserved, 'actual_amount', p_actual, 'overage', p_actual - p_hold.reserved,
            'overage_policy', p_hold.overage_policy,
            'debt_incurred', (SELECT n.debt - leaf.debt FROM ledger n WHERE n.id = leaf.id)), p_context);
END
$$;

CREATE OR REPLACE FUNCTION moment(p_ms bigint) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT instant(to_timestamp(p_ms / 1000.0))
$$;

CREATE OR REPLACE FUNCTION emit_expiries(p_reservations uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit(t.tenant_id, 'reservation.expired', r.scopes[cardinality(r.scopes)], '{"type": "system"}',
        'cycles-server', jsonb_build_object(
            'reservation_id', r.id, 'scope', r.scopes[cardinality(r.scopes)], 'unit', r.unit,
            'estimated_amount', r.reserved, 'created_at', moment(r.created_at_ms),
            'expired_at', moment(r.expires_at_ms), 'ttl_ms', r.expires_at_ms - r.created_at_ms,
            'extensions_used', r.extension_count), NULL)
    FROM reservation r JOIN tenant t ON t.id = r.tenant_id WHERE r.id = ANY (p_reservations);
END
$$;

-- A tenant's end: one event for each thing that ends with it.
CREATE OR REPLACE FUNCTION emit_close(p_tenant bigint, p_previous text, p_owned ledger[], p_context jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    slug text := (SELECT t.tenant_id FROM tenant t WHERE t.id = p_tenant);
    operator jsonb := '{"type": "admin"}';
    chain text := 'tenant_close_cascade:' || slug || ':' || gen_random_uuid();
    cause jsonb := '{"cascade_reason": "tenant_closed"}';
    l ledger;
BEGIN
    PERFORM emit(slug, 'tenant.closed', NULL, operator, 'cycles-admin', jsonb_build_object('tenant_id', slug,
        'previous_status', p_previous, 'new_status', 'CLOSED', 'changed_fields', '[]'::jsonb), p_context, chain);
    FOREACH l IN ARRAY coalesce(p_owned, '{}') LOOP
        CONTINUE WHEN l.status = 'CLOSED';
        IF l.reserved > 0 THEN
            PERFORM emit(slug, 'reservation.released_via_tenant_cascade', l.scope, operator, 'cycles-admin',
                jsonb_build_object('ledger_id', l.ledger_id, 'scope', l.scope, 'unit', l.unit,
                    'released_amount', l.reserved) || cause, p_context, chain);
        END IF;
        PERFORM emit(slug, 'budget.closed_via_tenant_cascade', l.scope, operator, 'cycles-admin',
            jsonb_build_object('ledger_id', l.ledger_id, 'scope', l.scope, 'unit', l.unit, 'prior_status', l.status,
                'new_status', 'CLOSED') || cause || CASE WHEN l.reserved > 0
                THEN jsonb_build_object('released_reserved_amount', l.reserved) ELSE '{}' END, p_context, chain);
    END LOOP;
    PERFORM emit(slug, 'api_key.revoked_via_tenant_cascade', NULL, operator, 'cycles-admin',
        jsonb_build_object('key_id', k.key_id, 'name', k.name, 'prior_status', k.status, 'new_status', 'REVOKED')
            || cause, p_context, chain)
    FROM api_key k WHERE k.tenant_id = p_tenant AND k.status <> 'REVOKED';
    PERFORM emit(slug, 'webhook.disabled_via_tenant_cascade', NULL, operator, 'cycles-admin',
        jsonb_build_object('subscription_id', s.subscription_id, 'prior_status', s.status, 'new_status', 'DISABLED')
            || cause, p_context, chain)
    FROM subscription s WHERE s.tenant_id = slug AND s.status <> 'DISABLED';
END
$$;

-- Forget old traces: deliveries after two weeks, events after 90 days, audit rows after 400, but those of callers
-- nobody knows after 30: anyone can make such rows.
CREATE OR REPLACE FUNCTION purge_trail(p_limit int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    gone int;
    total int := 0;
BEGIN
    DELETE FROM delivery WHERE id IN (
        SELECT d.id FROM delivery d WHERE d.created_at < clock_timestamp() - interval '14 days'
        LIMIT p_limit FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS gone = ROW_COUNT;
    total := total + gone;
    DELETE FROM emitted_event WHERE id IN (
        SELECT e.id FROM emitted_event e WHERE e.created_at < clock_timestamp() - interval '90 days'
        LIMIT p_limit FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS gone = ROW_COUNT;
    total := total + gone;
    DELETE FROM audit_entry WHERE id IN (
        SELECT a.id FROM audit_entry a WHERE a.created_at < clock_timestamp() - interval '30 days'
          AND (a.tenant_id = '__unauth__' OR a.created_at < clock_timestamp() - interval '400 days')
        LIMIT p_limit FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN total + gone;
END
$$;
