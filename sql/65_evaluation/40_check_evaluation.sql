-- drop: DROP FUNCTION IF EXISTS loracomp.check_evaluation(text[], text[], text, integer)
-- Changes nothing; raises for the first thing that an evaluation could not be started with.
CREATE FUNCTION loracomp.check_evaluation(tasks text[], policies text[], split text, rows_a_task integer)
RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    unknown_tasks CONSTANT text := loracomp.unknown_tasks(tasks);
    unknown_policies CONSTANT text := (
        SELECT string_agg(DISTINCT coalesce(u.name, 'null'), ', ') FROM unnest(policies) AS u (name)
        WHERE NOT EXISTS (SELECT FROM loracomp.policy AS p WHERE p.name = u.name)
    );
    empty_tasks CONSTANT text := (
        SELECT string_agg(DISTINCT u.name, ', ') FROM unnest(tasks) AS u (name)
        WHERE NOT EXISTS (SELECT FROM loracomp.evaluated_examples(u.name, check_evaluation.split))
    );
BEGIN
    IF coalesce(cardinality(tasks), 0) = 0 OR coalesce(cardinality(policies), 0) = 0 THEN
        RAISE EXCEPTION 'tasks and policies must name at least one each' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF rows_a_task < 1 THEN
        RAISE EXCEPTION 'rows_a_task must be 1 or more, not %', rows_a_task
            USING ERRCODE = 'invalid_parameter_value', HINT = 'leave it out for all rows';
    END IF;
    IF unknown_tasks IS NOT NULL THEN
        RAISE EXCEPTION 'tasks names tasks that do not exist: %', unknown_tasks
            USING ERRCODE = 'no_data_found', HINT = 'loracomp task list names those that there are';
    END IF;
    IF unknown_policies IS NOT NULL THEN
        RAISE EXCEPTION 'policies names policies that do not exist: %', unknown_policies
            USING ERRCODE = 'no_data_found', HINT = 'loracomp policy list names those that there are';
    END IF;
    IF empty_tasks IS NOT NULL THEN
        RAISE EXCEPTION 'no % rows with text and answer of: %', split, empty_tasks
            USING ERRCODE = 'no_data_found',
                HINT = format('loracomp task import TASK --split %s brings them, or loracomp evaluate --data', split);
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_evaluation IS 'True, or an error that says why such an evaluation can''t be started.';
