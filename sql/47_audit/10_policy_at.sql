-- drop: DROP FUNCTION IF EXISTS loracomp.policy_at(text, timestamptz)
-- Reads the audit: what the last change until then left; where there was none, what the first change since found; where
-- there is none either, the policy as it is. A renaming ends the one name and begins the other.
CREATE FUNCTION loracomp.policy_at(name text, at timestamptz) RETURNS SETOF loracomp.policy
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    WITH event AS (
        SELECT
            e.id, e.at <= policy_at.at AS is_past,
            CASE WHEN e.before ->> 'name' = policy_at.name THEN e.before END AS before,
            CASE WHEN e.after ->> 'name' = policy_at.name THEN e.after END AS after
        FROM loracomp.audit_event AS e
        WHERE e.entity = 'policy' AND policy_at.name IN (e.before ->> 'name', e.after ->> 'name')
    ),
    stored AS (
        (SELECT 1 AS turn, e.after AS policy FROM event AS e WHERE e.is_past ORDER BY e.id DESC LIMIT 1)
        UNION ALL
        (SELECT 2, e.before FROM event AS e WHERE NOT e.is_past ORDER BY e.id LIMIT 1)
        UNION ALL
        SELECT 3, to_jsonb(p) FROM loracomp.policy AS p WHERE p.name = policy_at.name
    ),
    -- Null is an answer: it had been deleted, or was not there yet.
    found AS (SELECT s.turn, s.policy FROM stored AS s ORDER BY s.turn LIMIT 1)
    SELECT p.*
    FROM found AS f
    CROSS JOIN LATERAL jsonb_populate_record(NULL::loracomp.policy, f.policy) AS p
    -- What an event left was there, whatever an administrator has made of created_at.
    WHERE f.policy IS NOT NULL AND (f.turn = 1 OR p.created_at <= policy_at.at);
$$;
COMMENT ON FUNCTION loracomp.policy_at IS
'A policy as it was at a time; no row where it was not there. A setting that came with a later release is null.';
