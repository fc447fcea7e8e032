-- fund: an operator moves a budget. A key belongs to tenant, scope and unit, so a key used again for another ledger
-- cannot swallow that ledger's money.
CREATE OR REPLACE FUNCTION fund(
    p_tenant text, p_scope text, p_unit text, p_operation text, p_amount bigint, p_spent bigint,
    p_reason text, p_key text, p_request bytea,
    OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    was ledger;
    became ledger;
    owner tenant;
    operation_key text := 'fund:' || p_scope || ':' || p_unit;
BEGIN
    SELECT * INTO was FROM ledger l WHERE l.scope = p_scope AND l.unit = p_unit FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        answer_status := 404; answer_body := refusal('BUDGET_NOT_FOUND', p_scope); RETURN;
    END IF;
    SELECT * INTO owner FROM tenant t WHERE t.id = was.tenant_id;
    IF owner.tenant_id <> p_tenant THEN
        answer_status := 403; answer_body := refusal('FORBIDDEN'); RETURN;
    END IF;
    IF p_key IS NOT NULL THEN
        answer_body := recall(owner.id, operation_key, p_key, p_request);
        IF answer_body IS NOT NULL THEN
            answer_status := CASE WHEN answer_body ? 'error' THEN 409 ELSE 200 END;
            RETURN;
        END IF;
    END IF;
    answer_body := CASE
        WHEN owner.status = 'CLOSED' THEN refusal('TENANT_CLOSED')
        WHEN was.status = 'FROZEN' THEN refusal('BUDGET_FROZEN', p_scope)
        WHEN was.status = 'CLOSED' THEN refusal('BUDGET_CLOSED', p_scope)
        WHEN p_operation = 'DEBIT' AND was.remaining < p_amount
            THEN refusal('BUDGET_EXCEEDED', p_scope) || '{"what": "debit"}'
    END;
    IF answer_body IS NOT NULL THEN
        answer_status := 409; RETURN;
    END IF;

    -- Paying back more than is owed adds the rest to the budget.
    UPDATE ledger AS l SET
        allocated = CASE p_operation
            WHEN 'CREDIT' THEN l.allocated + p_amount
            WHEN 'DEBIT' THEN l.allocated - p_amount
            WHEN 'REPAY_DEBT' THEN l.allocated + p_amount - least(l.debt, p_amount)
            ELSE p_amount END,
        spent = CASE p_operation WHEN 'RESET_SPENT' THEN coalesce(p_spent, 0) ELSE l.spent END,
        debt = CASE p_operation WHEN 'REPAY_DEBT' THEN l.debt - least(l.debt, p_amount) ELSE l.debt END,
        is_over_limit = CASE p_operation
            WHEN 'REPAY_DEBT' THEN l.debt - least(l.debt, p_amount) ELSE l.debt END > l.overdraft_limit,
        updated_at = clock_timestamp()
    WHERE l.id = was.id RETURNING l.* INTO became;

    answer_status := 200;
    answer_body := jsonb_build_object('operation', p_operation,
        'previous_allocated', amount(p_unit, was.allocated), 'new_allocated', amount(p_unit, became.allocated),
        'previous_remaining', amount(p_unit, was.remaining), 'new_remaining', amount(p_unit, became.remaining),
        'previous_debt', amount(p_unit, was.debt), 'new_debt', amount(p_unit, became.debt),
        'previous_spent', amount(p_unit, was.spent), 'new_spent', amount(p_unit, became.spent),
        'timestamp', instant(clock_timestamp()));
    INSERT INTO fund_operation (ledger_id, operation, amount, reason, idempotency_key, answer)
    VALUES (was.id, p_operation, p_amount, p_reason, p_key, answer_body);
    IF p_key IS NOT NULL THEN
        PERFORM remember(owner.id, operation_key, p_key, p_request, answer_body, now_ms() + 86400000);
    END IF;
END
$$;
