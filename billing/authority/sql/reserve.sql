-- reserve: hold an estimate on every budgeted scope, or refuse and change nothing.
-- A dry run answers what would happen; it shares the keys of live reservations, so that one key means one request.
CREATE OR REPLACE FUNCTION reserve(
    p_prefix text, p_digest bytea, p_subject_tenant text, p_key text, p_request bytea,
    p_scopes text[], p_unit text, p_amount bigint,
    p_ttl_ms bigint, p_grace_ms bigint, p_policy text, p_dry_run boolean,
    p_subject text, p_action text, p_metadata text, p_context jsonb DEFAULT NULL,
    OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    caller record;
    ledgers ledger[];
    blocker record;
    fits boolean := false;
    change record;
    hold uuid;
    created bigint;
    ttl bigint;
    done text;  -- of what answers nothing: see 00_shared.sql
BEGIN
    SELECT * INTO caller FROM caller_of(p_prefix, p_digest);
    IF NOT FOUND OR caller.reason IS NOT NULL THEN
        answer_status := 401; answer_body := refusal(coalesce(caller.reason, 'KEY_NOT_FOUND')); RETURN;
    END IF;
    answer_tenant := caller.tenant_id;
    IF p_subject_tenant <> caller.tenant_id THEN
        answer_status := 403; answer_body := refusal('FORBIDDEN'); RETURN;
    END IF;

    -- Shared with other reserves, exclusive in a close: without it a hold made beside a close would outlive it.
    -- After waiting for a close the ledgers below are found CLOSED.
    done := pg_advisory_xact_lock_shared(tenant_lock(caller.id));
    ledgers := CASE WHEN p_dry_run THEN read_ledgers(caller.id, p_scopes, p_unit)
                    ELSE lock_ledgers(caller.id, p_scopes, p_unit) END;

    IF ledgers IS NOT NULL THEN
        blocker := obstacle(ledgers, p_amount);
        fits := blocker.code IS NULL;
    END IF;

    -- An answer is written down before its hold is made: whoever finds the key in the book then has changed nothing yet,
    -- and is answered from there. So reading the book costs only repeated calls and refused ones.
    IF fits AND NOT p_dry_run THEN
        change := moved(ledgers, p_amount, 0);
        created := now_ms();
        hold := new_id(created);
        ttl := least(coalesce(p_ttl_ms, caller.default_ttl_ms), caller.max_ttl_ms);
        answer_body := allowance(ledgers, p_scopes) || jsonb_build_object(
            'reservation_id', hold, 'expires_at_ms', created + ttl, 'remaining_ttl_ms', ttl,
            'scope_path', p_scopes[cardinality(p_scopes)], 'reserved', amount(p_unit, p_amount),
            'balances', balances_of(change.after));
        IF remembered(caller.id, 'reserve', p_key, p_request, answer_body,
                      created + greatest(ttl + p_grace_ms, 86400000)) THEN
            answer_status := 200;
            UPDATE ledger SET reserved = reserved + p_amount WHERE id = ANY (change.ids);
            INSERT INTO reservation (id, tenant_id, idempotency_key, unit, reserved, overage_policy, scopes, budgeted,
                subject, action, metadata, created_at_ms, expires_at_ms, deadline_ms, max_extensions)
            VALUES (hold, caller.id, p_key, p_unit, p_amount, coalesce(p_policy, caller.default_policy), p_scopes,
                change.scopes, p_subject, p_action, p_metadata, created, created + ttl, created + ttl + p_grace_ms,
                caller.max_extensions);
            IF change.drained THEN
                PERFORM emit_movements(caller.tenant_id, caller.key_id, ledgers, NULL, NULL, p_context);
            END IF;
            RETURN;
        END IF;
    END IF;

    answer_body := recall(caller.id, 'reserve', p_key, p_request);
    IF answer_body IS NOT NULL THEN
        answer_status := CASE WHEN answer_body ? 'error' THEN 409 ELSE 200 END;
        IF answer_body ? 'expires_at_ms' THEN
            answer_body := answer_body || jsonb_build_object('remaining_ttl_ms', coalesce(
                (SELECT greatest((answer_body ->> 'expires_at_ms')::bigint - now_ms(), 0) FROM reservation r
                 WHERE r.id = (answer_body ->> 'reservation_id')::uuid AND r.status = 'ACTIVE'), 0));
        END IF;
        RETURN;
    END IF;

    IF fits AND NOT p_dry_run THEN
        RAISE unique_violation USING MESSAGE = 'idempotency key forgotten meanwhile';  -- asked once more, it is free
    ELSIF fits THEN
        answer_status := 200;
    ELSIF ledgers IS NULL THEN
        answer_body := missing_ledger(caller.id, p_scopes, p_unit);
        answer_status := CASE answer_body ->> 'error' WHEN 'UNIT_MISMATCH' THEN 400 ELSE 404 END;
    ELSE
        answer_status := 409; answer_body := refusal(blocker.code, blocker.scope);
    END IF;

    IF p_dry_run AND answer_status <> 400 THEN
        answer_body := CASE WHEN answer_status = 200
            THEN allowance(ledgers, p_scopes) || jsonb_build_object(
                'reserved', amount(p_unit, p_amount), 'balances', balances_of(ledgers))
            ELSE jsonb_build_object('decision', 'DENY', 'affected_scopes', p_scopes, 'reason_code',
                CASE answer_body ->> 'error' WHEN 'NOT_FOUND' THEN 'BUDGET_NOT_FOUND' ELSE answer_body ->> 'error' END)
            END
            || jsonb_build_object('scope_path', p_scopes[cardinality(p_scopes)]);
        answer_status := 200;
        PERFORM remember(caller.id, 'reserve', p_key, p_request, answer_body, now_ms() + 86400000);
        IF answer_body ->> 'decision' = 'DENY' THEN
            PERFORM emit_denial(caller.tenant_id, caller.key_id, p_scopes, p_unit, p_amount,
                                answer_body ->> 'reason_code', p_subject, p_action, p_context);
        END IF;
        RETURN;
    END IF;
END
$$;
