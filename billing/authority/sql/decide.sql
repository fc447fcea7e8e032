-- decide: would this estimate be held now? Takes no lock and holds nothing; the answer is kept for a day per key.
CREATE OR REPLACE FUNCTION decide(
    p_prefix text, p_digest bytea, p_subject_tenant text, p_key text, p_request bytea,
    p_scopes text[], p_unit text, p_amount bigint,
    p_subject text DEFAULT NULL, p_action text DEFAULT NULL, p_context jsonb DEFAULT NULL,
    OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    caller record;
    ledgers ledger[];
    why record;
BEGIN
    SELECT * INTO caller FROM caller_of(p_prefix, p_digest);
    IF NOT FOUND OR caller.reason IS NOT NULL THEN
        answer_status := 401; answer_body := refusal(coalesce(caller.reason, 'KEY_NOT_FOUND')); RETURN;
    END IF;
    answer_tenant := caller.tenant_id;
    IF p_subject_tenant <> caller.tenant_id THEN
        answer_status := 403; answer_body := refusal('FORBIDDEN'); RETURN;
    END IF;

    answer_body := recall(caller.id, 'decide', p_key, p_request);
    IF answer_body IS NOT NULL THEN
        answer_status := CASE WHEN answer_body ? 'error' THEN 409 ELSE 200 END;
        RETURN;
    END IF;

    ledgers := read_ledgers(caller.id, p_scopes, p_unit);
    IF ledgers IS NULL THEN
        answer_body := missing_ledger(caller.id, p_scopes, p_unit);
        IF answer_body ->> 'error' = 'UNIT_MISMATCH' THEN
            answer_status := 400; RETURN;
        END IF;
        answer_body := jsonb_build_object(
            'decision', 'DENY', 'affected_scopes', p_scopes, 'reason_code', 'BUDGET_NOT_FOUND');
    ELSE
        why := obstacle(ledgers, p_amount);
        answer_body := CASE WHEN why.code IS NULL THEN allowance(ledgers, p_scopes)
            ELSE jsonb_build_object('decision', 'DENY', 'affected_scopes', p_scopes, 'reason_code', why.code) END;
    END IF;
    answer_status := 200;
    PERFORM remember(caller.id, 'decide', p_key, p_request, answer_body, now_ms() + 86400000);
    IF answer_body ->> 'decision' = 'DENY' THEN
        PERFORM emit_denial(caller.tenant_id, caller.key_id, p_scopes, p_unit, p_amount,
                            answer_body ->> 'reason_code', p_subject, p_action, p_context);
    END IF;
END
$$;
