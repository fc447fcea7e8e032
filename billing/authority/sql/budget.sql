-- What an operator does to a ledger besides funding it: make it, freeze it, change its settings, set its caps.

CREATE OR REPLACE FUNCTION create_budget(
    p_tenant text, p_scope text, p_unit text, p_allocated bigint, p_overdraft_limit bigint, p_policy text,
    p_rollover text, p_period_start timestamptz, p_period_end timestamptz, p_metadata jsonb,
    OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    owner tenant;
    made ledger;
BEGIN
    SELECT * INTO owner FROM tenant t WHERE t.tenant_id = p_tenant;
    IF NOT FOUND THEN
        answer_status := 404; answer_body := refusal('TENANT_NOT_FOUND'); RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(tenant_lock(owner.id));  -- a close beside us must not miss this ledger
    SELECT * INTO owner FROM tenant t WHERE t.id = owner.id;
    IF owner.status <> 'ACTIVE' THEN
        answer_status := CASE owner.status WHEN 'CLOSED' THEN 409 ELSE 400 END;
        answer_body := refusal(CASE owner.status WHEN 'CLOSED' THEN 'TENANT_CLOSED' ELSE 'TENANT_SUSPENDED' END);
        RETURN;
    END IF;
    INSERT INTO ledger (ledger_id, tenant_id, scope, unit, allocated, overdraft_limit, commit_overage_policy,
                        rollover_policy, period_start, period_end, metadata)
    VALUES (gen_random_uuid(), owner.id, p_scope, p_unit, p_allocated, coalesce(p_overdraft_limit, 0), p_policy,
            p_rollover, p_period_start, p_period_end, p_metadata)
    ON CONFLICT (scope, unit) DO NOTHING RETURNING * INTO made;
    IF made.id IS NULL THEN
        answer_status := 409; answer_body := refusal('DUPLICATE_RESOURCE', p_scope) || '{"what": "budget"}'; RETURN;
    END IF;
    answer_status := 201;
    answer_body := ledger_json(made);
END
$$;

-- The ledger of an operator's call, locked, or why it cannot be changed.
CREATE OR REPLACE FUNCTION changeable(p_scope text, p_unit text, OUT target ledger, OUT status int, OUT body jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT * INTO target FROM ledger l WHERE l.scope = p_scope AND l.unit = p_unit FOR NO KEY UPDATE;
    IF target.id IS NULL THEN
        status := 404; body := refusal('BUDGET_NOT_FOUND', p_scope); RETURN;
    END IF;
    PERFORM 1 FROM tenant t WHERE t.id = target.tenant_id AND t.status = 'CLOSED';
    IF FOUND THEN
        status := 409; body := refusal('TENANT_CLOSED');
    ELSIF target.status = 'CLOSED' THEN
        status := 409; body := refusal('BUDGET_CLOSED', p_scope);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION set_budget_status(
    p_scope text, p_unit text, p_status text, OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    subject record;
    became ledger;
BEGIN
    SELECT * INTO subject FROM changeable(p_scope, p_unit);
    IF subject.status IS NOT NULL THEN
        answer_status := subject.status; answer_body := subject.body; RETURN;
    END IF;
    UPDATE ledger AS l SET status = p_status, updated_at = clock_timestamp()
    WHERE l.id = (subject.target).id AND l.status <> p_status RETURNING l.* INTO became;
    IF became.id IS NULL THEN
        answer_status := 409; answer_body := refusal('INVALID_REQUEST', p_scope) || '{"what": "budget_status"}';
        RETURN;
    END IF;
    answer_status := 200;
    answer_body := ledger_json(became);
END
$$;

CREATE OR REPLACE FUNCTION patch_budget(
    p_scope text, p_unit text, p_overdraft_limit bigint, p_policy text, p_metadata jsonb,
    OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    subject record;
    became ledger;
BEGIN
    SELECT * INTO subject FROM changeable(p_scope, p_unit);
    IF subject.status IS NOT NULL THEN
        answer_status := subject.status; answer_body := subject.body; RETURN;
    END IF;
    UPDATE ledger AS l SET
        overdraft_limit = coalesce(p_overdraft_limit, l.overdraft_limit),
        is_over_limit = l.debt > coalesce(p_overdraft_limit, l.overdraft_limit),
        commit_overage_policy = coalesce(p_policy, l.commit_overage_policy),
        metadata = coalesce(p_metadata, l.metadata),
        updated_at = clock_timestamp()
    WHERE l.id = (subject.target).id RETURNING l.* INTO became;
    answer_status := 200;
    answer_body := ledger_json(became);
END
$$;

CREATE OR REPLACE FUNCTION set_caps(
    p_scope text, p_unit text, p_caps jsonb, OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    subject record;
BEGIN
    SELECT * INTO subject FROM changeable(p_scope, p_unit);
    IF subject.status IS NOT NULL THEN
        answer_status := subject.status; answer_body := subject.body; RETURN;
    END IF;
    UPDATE ledger AS l SET caps = nullif(p_caps, '{}'), updated_at = clock_timestamp()
    WHERE l.id = (subject.target).id;
    answer_status := 200;
    answer_body := jsonb_build_object('scope', p_scope, 'unit', p_unit, 'caps', p_caps);
END
$$;

-- End everything a tenant owns, in the transaction that closes it. Its running holds are given back here and now:
-- a hold that outlived its tenant would be given back a second time by the sweep.
-- Everybody who listens is told before the tenant's own webhooks are disabled, under one correlation id.
CREATE OR REPLACE FUNCTION close_tenant(p_tenant bigint, p_previous text, p_context jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    held uuid[];
    owned ledger[];
BEGIN
    PERFORM pg_advisory_xact_lock(tenant_lock(p_tenant));  -- no reserve is under way after this
    SELECT array_agg(h.id) INTO held FROM (
        SELECT r.id FROM reservation r WHERE r.tenant_id = p_tenant AND r.status = 'ACTIVE'
        ORDER BY r.id FOR NO KEY UPDATE
    ) AS h;
    SELECT array_agg(locked.l) INTO owned FROM (
        SELECT l FROM ledger l WHERE l.tenant_id = p_tenant ORDER BY l.scope, l.unit FOR NO KEY UPDATE
    ) AS locked;
    IF held IS NOT NULL THEN
        PERFORM give_back(held, 'RELEASED');
    END IF;
    PERFORM emit_close(p_tenant, p_previous, owned, p_context);
    UPDATE ledger SET status = 'CLOSED', updated_at = clock_timestamp()
    WHERE tenant_id = p_tenant AND status <> 'CLOSED';
    UPDATE api_key SET status = 'REVOKED', revoked_at = clock_timestamp(), revoked_reason = 'tenant_closed'
    WHERE tenant_id = p_tenant AND status <> 'REVOKED';
    UPDATE subscription SET status = 'DISABLED', updated_at = clock_timestamp()
    WHERE tenant_id = (SELECT t.tenant_id FROM tenant t WHERE t.id = p_tenant) AND status <> 'DISABLED';
END
$$;
