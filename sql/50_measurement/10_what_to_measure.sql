-- Which examples and adapters are worth measuring. These functions only read.
--   likely_tasks                the tasks whose adapters are likely to help with a task
--   draw_examples               rows of a split, in a random order that the seed determines
--   has_learnt_from             whether an adapter was trained on an example

-- Changes nothing. If many other tasks have an adapter, it searches the 200 nearest neighbours of each of 20 examples of the task, and
-- counts to which tasks they belong.
CREATE FUNCTION loracomp.likely_tasks(task_id integer, base_model_id integer, most integer) RETURNS integer[]
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- The settings of a search: see nearest_examples.
SET enable_seqscan = off
SET jit = off
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 200000
SET hnsw.ef_search = 100
AS $$
DECLARE
    others CONSTANT integer[] := ARRAY(
        SELECT a.task_id FROM loracomp.adapter AS a
        WHERE a.base_model_id = likely_tasks.base_model_id AND a.status = 'active' AND a.task_id <> likely_tasks.task_id
        ORDER BY a.task_id
    );
    exact boolean;
BEGIN
    IF cardinality(others) < likely_tasks.most THEN
        RETURN likely_tasks.task_id || others;
    END IF;
    exact := loracomp.search_exactly(others);
    RETURN likely_tasks.task_id || ARRAY(
        SELECT n.task_id
        FROM (
            SELECT v.embedding FROM loracomp.example_embedding AS v
            JOIN loracomp.example AS e ON e.id = v.example_id
            WHERE v.task_id = likely_tasks.task_id ORDER BY e.content_hash LIMIT 20
        ) AS asking
        CROSS JOIN LATERAL loracomp.nearest_examples(asking.embedding, others, 200, exact) AS n
        GROUP BY n.task_id
        ORDER BY count(*) DESC, max(n.similarity) DESC, n.task_id LIMIT likely_tasks.most - 1
    );
END
$$;
COMMENT ON FUNCTION loracomp.likely_tasks IS
'The task and other tasks whose adapters are likely to help with it, at most `most` in total: all tasks with an active adapter '
'if these are few, otherwise the tasks with the most examples among the nearest neighbours of 20 examples of the task.';

-- Reads the rows of a split in a random order that depends only on the seed, so that whoever asks for more rows gets
-- the same rows first.
CREATE FUNCTION loracomp.draw_examples(task_id integer, split text, seed integer, embedded boolean)
RETURNS TABLE (example_id bigint, ordinal bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.id, row_number() OVER (ORDER BY sha256(e.content_hash || int4send(draw_examples.seed)), e.id)
    FROM loracomp.example AS e
    WHERE e.task_id = draw_examples.task_id AND e.split = draw_examples.split
        AND e.prompt IS NOT NULL AND e.label IS NOT NULL
        AND coalesce(EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id) = embedded, TRUE);
END;
COMMENT ON FUNCTION loracomp.draw_examples IS
'Rows of a task''s split that have text and label, with their positions in a random order given by the seed. '
'`embedded` says which rows: only rows with an embedding (true), only rows without (false), or both (null).';

-- Reads no table. An adapter without a training record is assumed to be trained on all train rows of its own task.
CREATE FUNCTION loracomp.has_learnt_from(training jsonb, own_task text, task text, split text, content_hash bytea)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT split = 'train'
        AND coalesce(training -> 'tasks_seen' ? task, own_task = task)
        AND NOT coalesce(training -> 'kept_aside' ? encode(content_hash, 'hex'), FALSE);
END;
COMMENT ON FUNCTION loracomp.has_learnt_from IS
'Whether an adapter was trained on an example, according to its training record: the example must be a train row of a '
'task in tasks_seen (if the record lacks tasks_seen, of the adapter''s own task), and must not be among the rows that '
'training kept aside.';
