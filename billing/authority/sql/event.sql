-- event: book spend that had no hold. Debt and an overrun do not block it, a frozen or closed ledger does.
CREATE OR REPLACE FUNCTION book_event(
    p_prefix text, p_digest bytea, p_subject_tenant text, p_key text, p_request bytea,
    p_scopes text[], p_unit text, p_actual bigint, p_policy text, p_details text,
    p_context jsonb DEFAULT NULL,
    OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    caller record;
    ledgers ledger[];
    l ledger;
    policy text;
    blocker text;
    result record;
    event_id uuid := gen_random_uuid();
BEGIN
    SELECT * INTO caller FROM caller_of(p_prefix, p_digest);
    IF NOT FOUND OR caller.reason IS NOT NULL THEN
        answer_status := 401; answer_body := refusal(coalesce(caller.reason, 'KEY_NOT_FOUND')); RETURN;
    END IF;
    answer_tenant := caller.tenant_id;
    IF p_subject_tenant <> caller.tenant_id THEN
        answer_status := 403; answer_body := refusal('FORBIDDEN'); RETURN;
    END IF;
    ledgers := lock_ledgers(caller.id, p_scopes, p_unit);
    answer_body := recall(caller.id, 'event', p_key, p_request);
    IF answer_body IS NOT NULL THEN
        answer_status := CASE WHEN answer_body ? 'error' THEN 409 ELSE 201 END;
        RETURN;
    END IF;
    IF ledgers IS NULL THEN
        answer_body := missing_ledger(caller.id, p_scopes, p_unit);
        answer_status := CASE answer_body ->> 'error' WHEN 'UNIT_MISMATCH' THEN 400 ELSE 404 END;
        RETURN;
    END IF;

    policy := coalesce(p_policy, caller.default_policy);
    FOREACH l IN ARRAY ledgers LOOP
        blocker := CASE
            WHEN l.status = 'FROZEN' THEN 'BUDGET_FROZEN'
            WHEN l.status = 'CLOSED' THEN 'BUDGET_CLOSED'
            WHEN policy = 'REJECT' AND l.remaining < p_actual THEN 'BUDGET_EXCEEDED'
        END;
        IF blocker IS NOT NULL THEN
            answer_status := 409; answer_body := refusal(blocker, l.scope); RETURN;
        END IF;
    END LOOP;
    result := charge(ledgers, 0, p_actual, policy);
    IF result.code IS NOT NULL THEN
        answer_status := 409; answer_body := refusal(result.code) || '{"what": "commit"}'; RETURN;
    END IF;

    answer_status := 201;
    answer_body := jsonb_build_object('status', 'APPLIED', 'event_id', event_id, 'balances', result.balances)
        || CASE WHEN result.charged < p_actual
                THEN jsonb_build_object('charged', amount(p_unit, result.charged)) ELSE '{}' END;
    INSERT INTO event (id, tenant_id, idempotency_key, unit, charged, actual, budgeted, details, created_at_ms)
    VALUES (event_id, caller.id, p_key, p_unit, result.charged, p_actual,
            ARRAY(SELECT e.scope FROM unnest(ledgers) AS e), p_details, now_ms());
    PERFORM remember(caller.id, 'event', p_key, p_request, answer_body, now_ms() + 7 * 86400000::bigint);
    IF result.notable THEN
        PERFORM emit_movements(caller.tenant_id, caller.key_id, ledgers, NULL, policy, p_context);
    END IF;
END
$$;
