-- commit: turn a hold into spend, once. Works on frozen ledgers: a freeze stops new holds, not running calls.
CREATE OR REPLACE FUNCTION commit_reservation(
    p_prefix text, p_digest bytea, p_reservation uuid, p_key text, p_request bytea,
    p_unit text, p_actual bigint, p_metrics text, p_metadata text, p_context jsonb DEFAULT NULL,
    OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    caller record;
    hold reservation;
    ledgers ledger[];
    result record;
BEGIN
    SELECT * INTO caller FROM caller_of(p_prefix, p_digest);
    IF NOT FOUND OR caller.reason IS NOT NULL THEN
        answer_status := 401; answer_body := refusal(coalesce(caller.reason, 'KEY_NOT_FOUND')); RETURN;
    END IF;
    answer_tenant := caller.tenant_id;
    hold := (SELECT r FROM reservation r WHERE r.id = p_reservation FOR NO KEY UPDATE);
    IF (hold.status = 'ACTIVE' AND hold.tenant_id = caller.id) IS NOT TRUE THEN
        result := ended(hold, caller.id, 'COMMITTED', p_key, p_request);
        answer_status := result.status; answer_body := result.body; RETURN;
    END IF;
    IF hold.unit <> p_unit THEN
        answer_status := 400; answer_body := refusal('UNIT_MISMATCH'); RETURN;
    END IF;
    IF now_ms() > hold.deadline_ms THEN
        answer_status := 410; answer_body := refusal('RESERVATION_EXPIRED'); RETURN;
    END IF;
    IF hold.overage_policy = 'REJECT' AND p_actual > hold.reserved THEN
        answer_status := 409; answer_body := refusal('BUDGET_EXCEEDED') || '{"what": "commit"}'; RETURN;
    END IF;

    ledgers := lock_ledgers(hold.tenant_id, hold.budgeted, hold.unit);
    result := charge(ledgers, hold.reserved, p_actual, hold.overage_policy);
    IF result.code IS NOT NULL THEN
        answer_status := 409; answer_body := refusal(result.code) || '{"what": "commit"}'; RETURN;
    END IF;
    answer_body := jsonb_build_object(
        'status', 'COMMITTED', 'charged', amount(hold.unit, result.charged), 'balances', result.balances)
        || CASE WHEN result.charged < hold.reserved
                THEN jsonb_build_object('released', amount(hold.unit, hold.reserved - result.charged))
                ELSE '{}' END;
    answer_status := 200;
    UPDATE reservation SET status = 'COMMITTED', committed = result.charged, finalized_at_ms = now_ms(),
        metrics = p_metrics, committed_metadata = p_metadata,
        finish_key = p_key, finish_digest = p_request, finish_body = answer_body
    WHERE id = hold.id;
    IF p_actual > hold.reserved THEN
        PERFORM emit_overage(caller.tenant_id, caller.key_id, hold, p_actual, ledgers, p_context);
    END IF;
    IF result.notable THEN
        PERFORM emit_movements(caller.tenant_id, caller.key_id, ledgers, hold.id, hold.overage_policy, p_context);
    END IF;
END
$$;
