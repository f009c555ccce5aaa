-- From the weights of tasks to what a worker composes, and to what the trace says about it.
--   compose_tasks               the adapters of the tasks that the policy's router picks
--   trace_tasks                 what the trace says of each task
--   fallback_reason             why no adapter is composed
--   nearness, scaled            how much the adapters of a job with described choices count

-- Changes nothing. It returns a set, as trace_tasks does, because Postgres inserts only such a function into its caller's query.
CREATE FUNCTION loracomp.compose_tasks(
    base_model text,
    router text,
    tasks integer[],
    weights double precision[],
    eligible integer[],
    own_task integer
) RETURNS TABLE (
    task_ids integer[],
    names text[],
    adapter_ids integer[],
    adapter_sha256 text[],
    adapter_weights double precision[]
)
LANGUAGE sql STABLE ROWS 1
BEGIN ATOMIC
    SELECT
        coalesce(array_agg(c.task_id), '{}'),
        coalesce(array_agg(c.name), '{}'),
        coalesce(array_agg(c.adapter_id), '{}'),
        coalesce(array_agg(c.sha256), '{}'),
        coalesce(array_agg(c.weight), '{}')
    FROM (
        SELECT p.task_id, t.name, a.id AS adapter_id, a.sha256, p.weight
        FROM (
            SELECT u.task_id, u.weight
            FROM unnest(tasks, weights) AS u (task_id, weight)
            WHERE router = 'retrieval' AND u.weight > 0
            UNION ALL
            SELECT own_task, 1.0
            WHERE router = 'own_task' AND own_task = ANY (eligible)
        ) AS p
        JOIN loracomp.task AS t ON t.id = p.task_id
        JOIN loracomp.base_model AS b ON b.name = base_model
        JOIN loracomp.adapter AS a ON a.task_id = p.task_id AND a.base_model_id = b.id AND a.status = 'active'
        ORDER BY p.weight DESC, p.task_id
    ) AS c;
END;
COMMENT ON FUNCTION loracomp.compose_tasks IS
'The composition of one job, largest weight first: the tasks that its policy''s router picks, with their active adapters for the base '
'model. retrieval picks the tasks that routing kept, own_task the job''s own task, base none.';

-- Changes nothing. A control may compose a task that retrieval did not find; its probability is 0.
CREATE FUNCTION loracomp.trace_tasks(
    task_ids integer[],
    found_probabilities double precision[],
    found_gains double precision[],
    composed integer[],
    composed_weights double precision[]
) RETURNS TABLE (
    tasks text[],
    probabilities double precision[],
    weights double precision[],
    expected_gains double precision[]
)
LANGUAGE sql STABLE ROWS 1
BEGIN ATOMIC
    SELECT
        coalesce(array_agg(x.name), '{}'),
        coalesce(array_agg(x.probability), '{}'),
        coalesce(array_agg(x.weight), '{}'),
        array_agg(x.gain)
    FROM (
        SELECT t.name, coalesce(f.probability, 0) AS probability, coalesce(c.weight, 0) AS weight, f.gain
        FROM unnest(task_ids, found_probabilities, found_gains)
            WITH ORDINALITY AS f (task_id, probability, gain, ordinal)
        FULL JOIN unnest(composed, composed_weights) WITH ORDINALITY AS c (task_id, weight, ordinal) USING (task_id)
        JOIN loracomp.task AS t ON t.id = task_id
        ORDER BY f.ordinal, c.ordinal
    ) AS x;
END;
COMMENT ON FUNCTION loracomp.trace_tasks IS
'What a trace says of each task, most probable first: its probability, the weight with which it is composed (0: it is not), and its '
'adapter''s expected gain (null: unknown).';

-- Changes nothing and reads no table.
CREATE FUNCTION loracomp.fallback_reason(
    settings loracomp.policy,
    only_generating boolean,
    gives_weights boolean,
    own_task integer,
    embedding public.halfvec,
    eligible integer[],
    searched integer[],
    similarities double precision[],
    gains double precision[]
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN gives_weights THEN 'a given task has no active adapter, or may not be used'
    WHEN (settings).router = 'base' THEN 'router is base'
    WHEN searched = '{}' AND only_generating
        THEN 'no eligible adapter has learnt to write'
    WHEN searched = '{}' THEN 'no eligible task'
    WHEN (settings).router = 'own_task' AND own_task IS NULL THEN 'job names no task'
    WHEN (settings).router = 'own_task' THEN 'own task is not eligible'
    WHEN 0 = ALL (embedding::real[]) THEN 'embedding is zero'
    WHEN similarities = '{}' THEN 'no example of an eligible task'
    WHEN similarities[1] < (settings).min_similarity THEN 'below min_similarity'
    WHEN eligible = '{}' THEN 'no eligible task has an adapter'
    WHEN array_remove(gains, NULL) = '{}'
        THEN 'no retrieved example is measured with the policy''s choice_normalization and chat_template'
    ELSE 'no adapter is expected to help'
END;
COMMENT ON FUNCTION loracomp.fallback_reason IS 'Why a job is answered by the base model alone, in words, for its trace.';

-- Changes nothing and reads no table.
CREATE FUNCTION loracomp.nearness(similarities double precision[]) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN greatest(0.3, least(1.0, coalesce(similarities[1], 0)));
COMMENT ON FUNCTION loracomp.nearness IS
'Similarity of the nearest of the retrieved examples, from 0.3 to 1. If a job''s choices are described, the adapters'' weights are '
'multiplied by its fourth power, and descriptions count 5 nats divided by its square.';

-- Changes nothing and reads no table.
CREATE FUNCTION loracomp.scaled(weights double precision[], factor double precision) RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(
    SELECT w.weight * factor FROM unnest(weights) WITH ORDINALITY AS w (weight, ordinal) ORDER BY w.ordinal
);
COMMENT ON FUNCTION loracomp.scaled IS 'Each weight times a factor.';
