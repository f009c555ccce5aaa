-- drop: DROP FUNCTION IF EXISTS bi.compare_policies(text, text, text)
-- Reads bi.evaluation_pair; raises where there is nothing to compare, with the names that there are.
CREATE FUNCTION bi.compare_policies(evaluation text, policy_a text, policy_b text) RETURNS SETOF bi.evaluation_pair
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT p.* FROM bi.evaluation_pair AS p
    WHERE p.evaluation = compare_policies.evaluation AND p.policy_a = compare_policies.policy_a
        AND p.policy_b = compare_policies.policy_b
    ORDER BY p.scope = 'all', p.scope = 'family', p.family, p.own_task;
    IF NOT found THEN
        RAISE EXCEPTION 'evaluation % has no row that both % and % have answered', evaluation, policy_a, policy_b
            USING ERRCODE = 'no_data_found', HINT = coalesce(
                'policies that have answered: ' || (
                    SELECT string_agg(DISTINCT a.policy, ', ') FROM bi.accuracy AS a
                    WHERE a.evaluation = compare_policies.evaluation AND a.n > 0
                ),
                'bi.evaluation lists evaluations and how far each has got'
            );
    END IF;
END
$$;
COMMENT ON FUNCTION bi.compare_policies IS
'bi.evaluation_pair of two policies of an evaluation: each task, then each family, then all.';
