-- Examples of corrections that were withdrawn or replaced, or whose rows were deleted.
--   trigger unlabel             of answer_row: notes the example when the row is deleted, asked with another prompt or corrected otherwise
--   remove_withdrawn            deletes noted examples that no row has any more; the keeper calls it: 40_ask.sql
--     forget_examples           also when a declaration is dropped or erased

-- A correction belongs to one exact prompt, so it is deleted with it. The row stays drawn, because a sample that rows leave when somebody edits them,
-- as one does with those that were answered wrongly, would make all answers look better than they are. Its example is only noted here, because other rows may have it. This
-- transaction can't tell: it would have to wait for open corrections, and with isolation level REPEATABLE READ it doesn't see later ones.
CREATE FUNCTION loracomp.unlabel() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF tg_op = 'UPDATE' AND new.example_id = old.example_id THEN
        UPDATE loracomp.answer_row AS r SET correct = NULL, first_answer = NULL, example_id = NULL
        WHERE r.declaration_id = new.declaration_id AND r.key = new.key AND NOT EXISTS (
            SELECT FROM loracomp.example AS e JOIN loracomp.job AS j ON (j.prompt, j.choices) IS NOT DISTINCT FROM (e.prompt, e.choices)
            WHERE e.id = old.example_id AND j.id = new.job_id
        );
    ELSE
        INSERT INTO loracomp.withdrawn_example (declaration_id, example_id) VALUES (old.declaration_id, old.example_id);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.unlabel IS 'Trigger: notes the example of a row that is deleted, or that gets another prompt or another correction.';

CREATE TRIGGER unlabel_changed AFTER UPDATE ON loracomp.answer_row
FOR EACH ROW WHEN (
    old.example_id IS NOT NULL AND (old.example_id, old.prompt_hash) IS DISTINCT FROM (new.example_id, new.prompt_hash)
) EXECUTE FUNCTION loracomp.unlabel();
CREATE TRIGGER unlabel_deleted AFTER DELETE ON loracomp.answer_row
FOR EACH ROW WHEN (old.example_id IS NOT NULL) EXECUTE FUNCTION loracomp.unlabel();

-- A correction that is just taking an example has locked it; such an example is looked at again in the next call. The notes are deleted before the
-- rows are looked at, so that no note is lost whose row is only seen later.
CREATE FUNCTION loracomp.remove_withdrawn(d loracomp.declaration) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    free CONSTANT bigint[] := ARRAY(
        SELECT e.id FROM loracomp.withdrawn_example AS w JOIN loracomp.example AS e ON e.id = w.example_id
        WHERE w.declaration_id = d.id LIMIT 1000 FOR UPDATE OF e SKIP LOCKED
    );
BEGIN
    DELETE FROM loracomp.withdrawn_example AS w
    WHERE w.declaration_id = d.id AND (
        w.example_id = ANY (free) OR NOT EXISTS (SELECT FROM loracomp.example AS e WHERE e.id = w.example_id) -- erased meanwhile
    );
    PERFORM loracomp.forget_examples(ARRAY(
        SELECT f.id FROM unnest(free) AS f (id) WHERE NOT EXISTS (SELECT FROM loracomp.answer_row AS r WHERE r.example_id = f.id)
    ));
    RETURN cardinality(free);
END
$$;
COMMENT ON FUNCTION loracomp.remove_withdrawn IS
'Deletes examples of withdrawn corrections that no row of the declaration has any more; returns how many it has looked at.';

-- Jobs that measure an example contain its text.
CREATE FUNCTION loracomp.forget_examples(ids bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    measuring CONSTANT bigint[] := ARRAY(
        SELECT j.id FROM loracomp.job AS j WHERE j.kind = 'measure' AND j.example_id = ANY (forget_examples.ids)
    );
BEGIN
    IF measuring <> '{}' THEN
        PERFORM loracomp.delete_jobs(measuring);
    END IF;
    DELETE FROM loracomp.example AS e WHERE e.id = ANY (forget_examples.ids);
END
$$;
COMMENT ON FUNCTION loracomp.forget_examples IS 'Deletes examples that were made from corrections, and the jobs that measure them.';
