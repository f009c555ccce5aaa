-- Measurements belong to examples: jobs of kind measure write them, and routing reads them.
--   trigger forget_evidence     deletes a task's evidence once no measurement supports it

-- A row of task_evidence contains choices, which a user wrote. It is therefore deleted with the last measured example that has these
-- choices.
CREATE FUNCTION loracomp.forget_evidence() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    DELETE FROM loracomp.task_evidence AS v
    WHERE (v.task_id, v.base_model_id) IN (SELECT g.task_id, g.base_model_id FROM gone AS g) AND NOT EXISTS (
        SELECT FROM loracomp.measurement AS m JOIN loracomp.example AS e ON e.id = m.example_id
        WHERE (m.task_id, m.base_model_id) = (v.task_id, v.base_model_id)
            AND e.choices @> v.choices AND e.choices <@ v.choices
    );
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.forget_evidence IS 'Trigger: deletes the evidence of a task once no measured example has its choices.';

CREATE TRIGGER forget_evidence AFTER DELETE ON loracomp.measurement REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.forget_evidence();
